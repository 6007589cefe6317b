//! `caisson system …`, `version`, `info`, `events`.

mod df;
mod dial;
mod events;
mod info;
mod prune;
mod version;

pub use df::COMMANDS as DF;
pub use dial::COMMANDS as DIAL;
pub use events::COMMANDS as EVENTS;
pub use info::COMMANDS as INFO;
pub use prune::COMMANDS as PRUNE;
pub use version::COMMANDS as VERSION;
