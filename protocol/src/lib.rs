//! the messages that cross our own process boundaries
