//! Serving one client connection: requests are answered here or by the agent, streams are passed through.
//!
//! ```text
//!   client ── Hello, requests ──▶ one thread a request ──▶ sandbox.rs ──▶ answer
//!   client ── Hello, attach / *_path ──▶ a connection with the agent of its own; from then on bytes both ways,
//!                                        64 KiB at a time, each side waiting for the other; what a slow client has not
//!                                        taken when its sandbox is destroyed is kept here, and the guest can go
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use caisson_protocol::{
    Error, FrameDecoder, GENERATION, Hello, Request, RequestFrame, decode, encode,
};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::Shim;
use super::agent::read_frame;
use super::client::Client;

/// More requests at a time than any daemon makes; beyond them a connection is not read on.
const MAX_REQUESTS: usize = 256;

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The most that is kept for a client when its sandbox ends: more than an agent has for one (its `STALL_BYTES`, and the pipes).
const REST_BYTES: usize = 8 << 20;

/// Serves a connection to its end.
pub fn serve(shim: &Arc<Shim>, stream: UnixStream) -> io::Result<()> {
    let client = Arc::new(Client::new(stream.try_clone()?)?);
    let result = requests(shim, stream, &client);
    client.leave();
    match result {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}

fn requests(shim: &Arc<Shim>, mut stream: UnixStream, client: &Arc<Client>) -> io::Result<()> {
    let mut decoder = FrameDecoder::default();
    let hello: Hello = decode(&read_frame(&mut stream, &mut decoder)?).map_err(io::Error::other)?;
    client.send(&Hello {
        generation: GENERATION,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: Some(std::process::id() as i32),
    });
    if hello.generation != GENERATION {
        return Ok(());
    }
    let mut fresh = true;
    loop {
        let frame = read_frame(&mut stream, &mut decoder)?;
        let RequestFrame { id, request } = decode(&frame).map_err(io::Error::other)?;
        let first = std::mem::replace(&mut fresh, false);
        if !request.takes_connection() {
            handle(shim, client, id, request);
        } else if first {
            return pass_through(shim, stream, client, decoder, RequestFrame { id, request });
        } else {
            let message = "this request must be the first of its connection";
            client.answer(id, Err(Error::invalid(message)));
        }
    }
}

/// Takes one request; it is answered when it is done.
fn handle(shim: &Arc<Shim>, client: &Arc<Client>, id: u64, request: Request) {
    if let Request::Wait(request) = request {
        return match shim.sandbox.made() {
            Ok(_) => shim.sandbox.processes.wait(&request.process, client, id),
            Err(error) => client.answer(id, Err(error)),
        };
    }
    if shim.requests.count() >= MAX_REQUESTS {
        return answer(shim, client, id, request);
    }
    let (ours, answered) = (Arc::clone(shim), Arc::clone(client));
    let spawned = super::spawn("request", move || answer(&ours, &answered, id, request));
    if let Err(error) = spawned {
        let why = format!("the shim cannot make a thread for it: {error}");
        client.answer(id, Err(Error::internal(why)));
    }
}

fn answer(shim: &Shim, client: &Client, id: u64, request: Request) {
    let _busy = shim.requests.enter();
    let (creates, destroys) = (
        matches!(request, Request::Create(_)),
        matches!(request, Request::Destroy(_)),
    );
    let result = shim.perform(request);
    let over = match &result {
        Ok(_) => destroys,
        Err(_) => creates && !shim.sandbox.is_used(),
    };
    if over {
        shim.close();
    }
    client.answer(id, result);
    if over {
        shim.leave();
    }
}

/// Opens a connection with the agent, repeats the request there and becomes a pipe.
fn pass_through(
    shim: &Arc<Shim>,
    stream: UnixStream,
    client: &Arc<Client>,
    mut decoder: FrameDecoder,
    frame: RequestFrame,
) -> io::Result<()> {
    let opened = shim
        .sandbox
        .made()
        .and_then(|made| Ok((made.agent.open()?, made)));
    let ((mut agent, mut from_agent), made) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            client.answer(frame.id, Err(error));
            return Ok(());
        }
    };
    let _busy = shim.streams.enter();
    // A stream may rest for as long as it likes.
    stream.set_write_timeout(None)?;
    agent.write_all(&encode(&frame).map_err(io::Error::other)?)?;
    agent.write_all(&decoder.take_rest())?;
    (&stream).write_all(&from_agent.take_rest())?;

    let (client_in, agent_out) = (stream.try_clone()?, agent.try_clone()?);
    let towards_agent = super::spawn("input", move || {
        // The client's end of what it sends; what it gets goes on.
        let shutdown = match copy(&client_in, &agent_out) {
            Ok(()) => Shutdown::Write,
            Err(_) => Shutdown::Both,
        };
        let _ = agent_out.shutdown(shutdown);
    })?;
    let result = copy_out(&agent, &stream, made.destruction.as_fd());
    // The agent ends a connection when all is said.
    let _ = stream.shutdown(Shutdown::Both);
    let _ = agent.shutdown(Shutdown::Both);
    let _ = towards_agent.join();
    match result {
        // The client may go whenever it likes.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn copy(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Copies until the agent has said all, and lets it go as soon as that is here. It waits for a slow client until its sandbox is
/// destroyed.
fn copy_out(
    agent: &UnixStream,
    client: &UnixStream,
    destruction: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut rest: Vec<u8> = Vec::new();
    let (mut open, mut limit) = (true, 1);
    while open || !rest.is_empty() {
        let wanted = [
            (open && rest.len() < limit, agent.as_fd(), PollFlags::IN),
            (!rest.is_empty(), client.as_fd(), PollFlags::OUT),
            (limit < REST_BYTES, destruction, PollFlags::IN),
        ];
        let mut fds: Vec<PollFd<'_>> = wanted
            .iter()
            .filter(|(wanted, ..)| *wanted)
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [readable, writable, destroyed] =
            wanted.map(|(wanted, ..)| wanted && ready.next().unwrap_or(false));
        if destroyed {
            limit = REST_BYTES;
        }
        if readable {
            match rustix::net::recv(agent, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    open = false;
                    let _ = agent.shutdown(Shutdown::Both);
                }
                Ok((_, count)) => rest.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if writable {
            match rustix::net::send(client, &rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(rest.drain(..sent)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::event::{EventfdFlags, eventfd};

    const SAID: usize = 1 << 20;

    #[test]
    fn a_slow_client_is_waited_for_until_the_sandbox_is_destroyed() {
        let (mut agent, from_agent) = UnixStream::pair().expect("a pair");
        let (to_client, mut client) = UnixStream::pair().expect("a pair");
        let destruction = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let event = destruction.try_clone().expect("a descriptor");
        let relay = std::thread::spawn(move || copy_out(&from_agent, &to_client, event.as_fd()));
        agent
            .set_write_timeout(Some(std::time::Duration::from_millis(200)))
            .expect("set");
        let said: Vec<u8> = (0..SAID).map(|i| i as u8).collect();
        let mut taken = 0;
        while let Ok(count) = agent.write(&said[taken..]) {
            taken += count;
        }
        assert!(taken < SAID, "nobody was waited for");

        rustix::io::write(&destruction, &1u64.to_ne_bytes()).expect("written");
        agent.write_all(&said[taken..]).expect("the rest is taken");
        agent.shutdown(Shutdown::Write).expect("all is said");
        assert_eq!(agent.read(&mut [0; 1]).expect("hung up"), 0);
        drop(agent);
        let mut got = vec![0; SAID];
        client.read_exact(&mut got).expect("all of it");
        assert!(got == said);
        relay.join().expect("no panic").expect("copied");
    }
}
