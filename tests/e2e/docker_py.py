"""Docker's Python SDK against our socket: the life of a container, streams, files, images, events."""

import io
import os
import sys
import tarfile

import docker

host, image, isolation = sys.argv[1:]
client = docker.DockerClient(base_url=host, timeout=30)
extra = {"network_mode": "none"} if os.environ.get("REFERENCE") else {"isolation": isolation}
labels = {"caisson.case": "docker-py"}


def run(command, **options):
    return client.containers.run(image, command, labels=labels, **extra, **options)


assert client.ping()
assert client.version()["Os"] == "linux"
assert run("echo hello", remove=True) == b"hello\n"

try:
    run(["sh", "-c", "echo no >&2; exit 3"], remove=True)
    raise SystemExit("an error was expected")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3 and b"no" in error.stderr, error

container = run(["sh", "-c", "echo up; sleep 1000"], detach=True, name="py-life", environment={"A": "1"}, mem_limit="64m", tty=False)
try:
    container.reload()
    assert container.status == "running", container.status
    code, output = container.exec_run("sh -c 'echo $A'", environment={"B": "2"})
    assert (code, output) == (0, b"1\n"), (code, output)
    code, (out, err) = container.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True)
    assert (code, out, err) == (4, b"o\n", b"e\n"), (code, out, err)

    for number in range(20):  # the SDK loses what comes together with the answer's head
        code, output = container.exec_run(["echo", str(number)])
        assert (code, output) == (0, b"%d\n" % number), (code, output)

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"bytes"))
    assert container.put_archive("/tmp", archive.getvalue())
    chunks, stat = container.get_archive("/tmp/file")
    assert stat["name"] == "file" and stat["size"] == 5, stat
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert tar.extractfile("file").read() == b"bytes"

    assert container.stats(stream=False)["memory_stats"]["limit"] == 64 << 20
    assert "sleep" in str(container.top())
    assert container.logs() == b"up\n"
    container.pause()
    container.unpause()
    container.rename("py-other")
    container.update(mem_limit="128m", memswap_limit="256m")
    assert [c.id for c in client.containers.list(filters={"name": "py-other"})] == [container.id]
    assert {"Path": "/tmp/file", "Kind": 1} in container.diff()

    socket = container.attach_socket(params={"stdin": 0, "stdout": 1, "stream": 1})
    socket.close()
    container.stop(timeout=0)
    assert container.wait()["StatusCode"] == 137
    committed = container.commit("py-image", "1")
    assert committed.id in [i.id for i in client.images.list("py-image")]
    client.images.remove("py-image:1")
finally:
    container.remove(force=True)

try:
    client.containers.get("py-other")
    raise SystemExit("an error was expected")
except docker.errors.NotFound:
    pass

saved = b"".join(client.images.get(image).save(named=True))
assert client.images.load(saved)[0].id == client.images.get(image).id
assert any(event["Action"] == "destroy" for event in client.events(since=0, until=int(__import__("time").time()) + 1, decode=True, filters={"container": container.id}))
client.close()
print("all fine")
