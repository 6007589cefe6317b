//! references, content store, layers, registry client
