//! end-to-end harness and cases
