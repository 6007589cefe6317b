//! `caisson image …` and its short forms.

mod history;
pub mod list;
pub mod pull;
mod push;
pub mod remove;
mod transfer;

pub use history::COMMANDS as HISTORY;
pub use push::COMMANDS as PUSH;
pub use transfer::COMMANDS as TRANSFER;
