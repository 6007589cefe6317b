#!/bin/sh
# Runs in the lab: the same kernel, root and machine size under caisson-vmm and under QEMU's microvm, interleaved.
# Prints one line a figure: `NAME VMM VALUE UNIT`.
rounds=$1
memory_mib=128
cd /payload
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
trace=/sys/kernel/tracing/events/kvm/kvm_exit
truncate -s 256M /run/disk.img
# holes would be read from nowhere
dd if=/dev/urandom of=/run/disk.img bs=1M count=256 conv=notrunc 2>/dev/null

modprobe vhost_vsock
mkfifo /run/hello
agent_port=1024

words() { # what the guest does: boot, block, vsock, idle; or agent: what runs in every microVM of caisson
    common="root=/dev/vda rootfstype=erofs ro quiet reboot=k panic=-1 random.trust_bootloader=on"
    case $1 in
    agent) echo "$common init=/agent dummy.numdummies=0 page_reporting.page_reporting_order=7" ;;
    *) echo "$common init=/init console=ttyS0 bench=$1" ;;
    esac
}

root() { if [ "$1" = agent ]; then echo agent.erofs; else echo bench.erofs; fi; }

caisson() {
    rm -f /run/vsock
    cat >/run/spec.json <<SPEC
{"id":"bench","vcpus":1,"memory_bytes":$((memory_mib << 20)),"kernel":{"path":"/payload/vmlinux"},"command_line":"$(words "$1")",
"assist":"off","vsock":{"guest_cid":3,"listener":{"path":"/run/vsock"}},
"disks":[{"file":{"path":"/payload/$(root "$1")"},"serial":"root","read_only":true},{"file":{"path":"/run/disk.img"},"serial":"data","read_only":false}]}
SPEC
    exec ./caisson-vmm run --boot-timing /run/spec.json
}

qemu() {
    export LD_LIBRARY_PATH=/payload/qemu/lib
    exec ./qemu/qemu-system-x86_64 -L /payload/qemu/share -M microvm,acpi=off,x-option-roms=off,rtc=off,pit=on,pic=on \
        -accel kvm -cpu host -m ${memory_mib}M -smp 1 -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -global virtio-mmio.force-legacy=false -kernel vmlinux -append "$(words "$1" | sed 's/reboot=k/reboot=t/')" \
        -drive id=root,file="$(root "$1")",format=raw,if=none,readonly=on -device virtio-blk-device,drive=root \
        -drive id=data,file=/run/disk.img,format=raw,if=none,cache=writeback -device virtio-blk-device,drive=data \
        -device vhost-vsock-device,guest-cid=3
}

now_us() { echo $(($(date +%s%N) / 1000)); }
hits() { awk '/Hits:/ {print $2}' $trace/hist; }

boot() {
    echo 'hist:keys=exit_reason' >$trace/trigger
    began=$(now_us)
    ("$1" boot) >/run/out 2>&1 </dev/null
    took=$(($(now_us) - began))
    exits=$(hits)
    echo '!hist:keys=exit_reason' >$trace/trigger
    grep -q reached /run/out || { echo "the guest did not boot under $1:" >&2; tail -5 /run/out >&2; exit 1; }
    echo "boot $1 $took us"
    echo "exits $1 ${exits:-0} exits"
}

# One end of a connection that a guest makes to a port of its host; the other end is a command. Both VMMs' go through socat.
host_side() { # vmm port command
    case $1 in
    caisson) exec socat -b 65536 SYSTEM:"echo ACCEPT $2; $3" UNIX-CONNECT:/run/vsock,retry=2000,interval=0.01 ;;
    qemu) exec socat -b 65536 VSOCK-LISTEN:"$2" SYSTEM:"$3" ;;
    esac
}

hello() {
    rm -f /run/vsock
    (host_side "$1" $agent_port "cat >/run/hello") &
    listener=$!
    echo 'hist:keys=exit_reason' >$trace/trigger
    began=$(now_us)
    ("$1" agent) >/run/out 2>&1 </dev/null &
    pid=$!
    head -c 20 /run/hello | grep -q . || { echo "no agent said hello under $1:" >&2; tail -5 /run/out >&2; exit 1; }
    took=$(($(now_us) - began))
    exits=$(hits)
    echo '!hist:keys=exit_reason' >$trace/trigger
    kill -9 $pid
    wait $pid $listener 2>/dev/null
    echo "agent_hello $1 $took us"
    echo "exits_to_agent_hello $1 ${exits:-0} exits"
    sed -n 's/.*"phase":"\([a-z]*\)","at_us":\([0-9]*\).*/phase_\1 caisson \2 us/p' /run/out
}

vsock() {
    rm -f /run/vsock
    (host_side "$1" 5000 "cat >/dev/null") &
    (host_side "$1" 5001 "head -c 67108864 /dev/zero") &
    ("$1" vsock) 2>&1 </dev/null | tr -d "\r" >/run/out
    wait
    figures "$1"
}

block() {
    ("$1" block) 2>&1 </dev/null | tr -d "\r" >/run/out
    figures "$1"
}

figures() { grep -o '^[a-z0-9_]* [0-9]*$' /run/out | while read -r name value; do echo "$name $1 $value us"; done; }

overhead() {
    ("$1" idle) >/run/out 2>&1 </dev/null &
    pid=$!
    for _ in $(seq 300); do grep -q reached /run/out && break; sleep 0.1; done
    # everything private to the process but the mapping that is the guest's memory
    awk -v guest=$((memory_mib << 10)) '/^Size:/ {size=$2} /^Private_/ && size < guest {sum += $2} END {print sum}' /proc/$pid/smaps |
        while read -r kib; do echo "overhead $1 $kib KiB"; done
    kill -9 $pid
    wait $pid 2>/dev/null || true # 137
}

for round in $(seq "$rounds"); do
    if [ $((round % 2)) = 1 ]; then order="caisson qemu"; else order="qemu caisson"; fi
    for vmm in $order; do boot "$vmm"; done
    for vmm in $order; do hello "$vmm"; done
    for vmm in $order; do vsock "$vmm"; done
    for vmm in $order; do block "$vmm"; done
    for vmm in $order; do overhead "$vmm"; done
done
