//! owns the processes of one sandbox and serves protocol over a stream
