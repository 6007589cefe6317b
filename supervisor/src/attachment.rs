//! Output to whoever is attached, input from them.
//!
//! ```text
//!   read ≤ 64 KiB ─▶ log ─▶ one shared chunk ─▶ outbox of every attachment that wants the stream
//! ```
//!
//! An outbox at [`STALL_BYTES`] stops the reading of the process' outputs; at half of it the reading goes on.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use caisson_protocol::{
    AttachRequest, ChunkDecoder, Error, ExitStatus, Outcome, ProtocolError, Response, Stream,
    chunk_header,
};
use nix::errno::Errno;

use crate::STALL_BYTES;
use crate::connection::{Attached, Mode};
use crate::process::{ConnectionId, OUTPUTS, log_stream};
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Turns a connection into a process' streams. The answer is queued before anything of the streams.
    pub(crate) fn attach(
        &mut self,
        connection_id: ConnectionId,
        request_id: u64,
        request: AttachRequest,
    ) {
        let AttachRequest {
            process: id,
            streams,
            journal,
        } = request;
        let Some(process) = self.processes.get_mut(id.as_str()) else {
            let error: Error = Error::not_found(format!("no process {id} in this sandbox"));
            self.answer(connection_id, request_id, Err(error));
            return;
        };
        let id = Rc::clone(&process.id);
        process.attachments.push(connection_id);
        let open = [process.outputs[0].is_some(), process.outputs[1].is_some()];
        // After the grace nothing is passed on any more, so a late attachment ends at once too.
        let cut = process.is_over() && process.cut_at.is_none() && !journal;
        let ended = journal.then(|| process.exit_status().cloned()).flatten();
        self.answer(connection_id, request_id, Ok(Response::Done));
        let Some(connection) = self.connections.get_mut(&connection_id) else {
            return;
        };
        let decoder = ChunkDecoder::with_rest(connection.frames.take_rest());
        connection.mode = Mode::Attached(Attached {
            process: Rc::clone(&id),
            streams,
            decoder,
            stdin_ended: false,
            ended: [false; 2],
            journal,
        });
        for (stream, open) in OUTPUTS.into_iter().zip(open) {
            if wants(streams, stream) && (!open || cut) {
                connection.end_stream(stream);
            }
        }
        if let Some(status) = ended {
            connection.push(exit_chunk(&status));
        }
        self.close_finished_attachments(&id);
    }

    /// Tells the journals of a process how it ended; everything it wrote until now is queued before.
    pub(crate) fn journal_exit(&mut self, id: &Rc<str>, status: &ExitStatus) {
        let Some(process) = self.processes.get(id) else {
            return;
        };
        for connection_id in process.attachments.clone() {
            if let Some(connection) = self.connections.get_mut(&connection_id)
                && matches!(&connection.mode, Mode::Attached(a) if a.journal)
            {
                connection.push(exit_chunk(status));
                self.settle(connection_id);
            }
        }
    }

    /// A connection that was attached is gone.
    pub(crate) fn detach(&mut self, connection_id: ConnectionId, attached: &Attached) {
        if let Some(process) = self.processes.get_mut(&attached.process) {
            process.attachments.retain(|other| *other != connection_id);
        }
        if attached.streams.stdin && !attached.stdin_ended {
            self.client_input_ended(&attached.process);
        }
        self.unstall(&attached.process);
    }

    /// Takes one chunk from an attached client; `false` when there is none or no room for it.
    pub(crate) fn understand_input(
        &mut self,
        connection_id: ConnectionId,
    ) -> Result<bool, ProtocolError> {
        let Some(connection) = self.connections.get_mut(&connection_id) else {
            return Ok(false);
        };
        let Mode::Attached(attached) = &mut connection.mode else {
            return Ok(false);
        };
        let id = Rc::clone(&attached.process);
        let process = self.processes.get_mut(&id);
        if process.as_ref().is_some_and(|p| !p.input.has_room()) {
            return Ok(false);
        }
        let Some(chunk) = attached.decoder.next_chunk()? else {
            if connection.read_ended {
                // What a client that closes has sent before is delivered; what it does not take any more is not kept.
                connection.closing = true;
            }
            return Ok(false);
        };
        if chunk.stream != Stream::Stdin {
            return Err(ProtocolError::UnknownStream(1));
        }
        if !attached.streams.stdin || attached.stdin_ended {
            return Ok(true);
        }
        if chunk.bytes.is_empty() {
            attached.stdin_ended = true;
            self.client_input_ended(&id);
        } else if let Some(process) = process {
            process.input.push(&chunk.bytes);
        }
        Ok(true)
    }

    fn client_input_ended(&mut self, id: &Rc<str>) {
        if let Some(process) = self.processes.get_mut(id)
            && process.stdin_once
            && process.terminal.is_none()
        {
            process.input.close();
        }
    }

    /// The process has read some of its input.
    pub(crate) fn input_ready(&mut self, id: &Rc<str>) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        process.input.drain();
        if process.input.has_room() {
            for connection in process.attachments.clone() {
                self.understand(connection);
                self.settle(connection);
            }
        }
    }

    /// The process has written something, or an output has ended.
    pub(crate) fn output_ready(&mut self, id: &Rc<str>, stream: Stream) {
        self.read_output(id, stream, usize::MAX);
    }

    /// Reads once, up to `limit` bytes, and passes it on. How much it was; `None` at the end or when there is nothing now.
    pub(crate) fn read_output(
        &mut self,
        id: &Rc<str>,
        stream: Stream,
        limit: usize,
    ) -> Option<usize> {
        let index = usize::from(stream == Stream::Stderr);
        let output = self.processes.get(id)?.outputs[index].as_ref()?;
        let mut buffer = std::mem::take(&mut self.scratch);
        let length = buffer.len().min(limit);
        let result = loop {
            match nix::unistd::read(output.as_fd(), &mut buffer[..length]) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        let count = match result {
            // A terminal whose last user is gone says EIO.
            Ok(0) | Err(Errno::EIO) => {
                self.output_ended(id, stream);
                None
            }
            Ok(count) => {
                self.deliver(id, stream, &buffer[..count]);
                Some(count)
            }
            Err(Errno::EAGAIN) => None,
            Err(errno) => {
                tracing::error!(process = %id, %errno, "its output cannot be read");
                self.output_ended(id, stream);
                None
            }
        };
        self.scratch = buffer;
        count
    }

    fn deliver(&mut self, id: &Rc<str>, stream: Stream, bytes: &[u8]) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        if let Some(log) = &mut process.log {
            log.write(log_stream(stream), bytes);
        }
        if process.attachments.is_empty() {
            return;
        }
        let chunk: Rc<[u8]> = [&chunk_header(stream, bytes.len())[..], bytes]
            .concat()
            .into();
        let mut stalled = false;
        for connection_id in process.attachments.clone() {
            let Some(connection) = self.connections.get_mut(&connection_id) else {
                continue;
            };
            let Mode::Attached(attached) = &connection.mode else {
                continue;
            };
            if wants(attached.streams, stream)
                && !attached.ended[usize::from(stream == Stream::Stderr)]
            {
                connection.push(Rc::clone(&chunk));
                connection.flush();
                stalled |= connection.outstanding_bytes() >= STALL_BYTES;
            }
        }
        if stalled && let Some(process) = self.processes.get_mut(id) {
            process.listen(false);
        }
        self.settle_attachments(id);
    }

    /// Notes what the attachments of a process wait for.
    fn settle_attachments(&mut self, id: &Rc<str>) {
        for connection in self
            .processes
            .get(id)
            .map(|p| p.attachments.clone())
            .unwrap_or_default()
        {
            self.settle(connection);
        }
    }

    /// Reads on when every attachment has room again.
    pub(crate) fn unstall(&mut self, id: &Rc<str>) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        if !process.stalled {
            return;
        }
        let connections = &self.connections;
        let room = |c: &ConnectionId| {
            connections
                .get(c)
                .is_none_or(|c| c.outstanding_bytes() < STALL_BYTES / 2)
        };
        if process.attachments.iter().all(room) {
            process.listen(true);
        }
    }

    pub(crate) fn output_ended(&mut self, id: &Rc<str>, stream: Stream) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        let index = usize::from(stream == Stream::Stderr);
        if let Some(output) = process.outputs[index].take() {
            self.sources.remove(&output.token());
        }
        if let Some(log) = &mut process.log {
            log.end(log_stream(stream));
        }
        for connection_id in process.attachments.clone() {
            if let Some(connection) = self.connections.get_mut(&connection_id)
                && matches!(&connection.mode, Mode::Attached(a) if wants(a.streams, stream))
            {
                connection.end_stream(stream);
            }
        }
        self.close_finished_attachments(id);
    }

    /// Hangs up on attachments that will carry nothing more.
    pub(crate) fn close_finished_attachments(&mut self, id: &Rc<str>) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        let over = process.is_over();
        let open = [process.outputs[0].is_some(), process.outputs[1].is_some()];
        if over && open == [false; 2] {
            process.cut_at = None;
            process.log = None;
        }
        for connection_id in process.attachments.clone() {
            let Some(connection) = self.connections.get_mut(&connection_id) else {
                continue;
            };
            let Mode::Attached(attached) = &mut connection.mode else {
                continue;
            };
            // With a terminal standard error never exists: it ends together with standard output.
            let asked: Vec<usize> = (0..2)
                .filter(|&i| wants(attached.streams, OUTPUTS[i]))
                .collect();
            let finished = asked.iter().all(|&i| attached.ended[i]);
            let finished = finished && (over || !attached.journal);
            if (finished && !asked.is_empty()) || (over && asked.is_empty()) {
                connection.closing = true;
            }
            self.settle(connection_id);
        }
    }

    /// The process has ended and its grace is over, its output still open in other hands: attachments end, the log goes on.
    pub(crate) fn cut_attachments(&mut self, id: &Rc<str>) {
        let Some(process) = self.processes.get_mut(id) else {
            return;
        };
        process.cut_at = None;
        process.listen(true);
        for connection_id in process.attachments.clone() {
            let Some(connection) = self.connections.get_mut(&connection_id) else {
                continue;
            };
            let Mode::Attached(attached) = &connection.mode else {
                continue;
            };
            if attached.journal {
                continue;
            }
            let streams = attached.streams;
            for stream in OUTPUTS.into_iter().filter(|&s| wants(streams, s)) {
                connection.end_stream(stream);
            }
        }
        self.close_finished_attachments(id);
    }

    /// When to cut the attachments of a process that has ended just now.
    pub(crate) fn grace_of_streams(&self) -> Instant {
        Instant::now() + crate::STREAM_GRACE
    }
}

fn exit_chunk(status: &ExitStatus) -> Rc<[u8]> {
    let outcome = Outcome::Ok(Response::Exited(status.clone()));
    let json = serde_json::to_vec(&outcome).unwrap_or_default();
    [&chunk_header(Stream::Status, json.len())[..], &json]
        .concat()
        .into()
}

/// Whether an attachment asked for an output.
fn wants(streams: caisson_protocol::Attach, stream: Stream) -> bool {
    match stream {
        Stream::Stdout => streams.stdout,
        Stream::Stderr => streams.stderr,
        Stream::Stdin | Stream::Status => false,
    }
}
