//! The director over sequences: a small world, what clients, hosts, routers and control do in it,
//! and time. See [`script`] for how bytes become a sequence, [`checks`] for what must hold.

mod checks;
mod claims;
mod frames;
mod headers;
mod script;
mod shell;
mod world;

use std::collections::BTreeSet;

use adit::dataplane::verdict::DropReason;

/// What a sequence brought about.
#[derive(Debug, Default)]
pub struct Reached {
    /// Names of the verdicts that were given.
    pub verdicts: BTreeSet<&'static str>,
    /// Reasons under which packets were dropped.
    pub dropped: BTreeSet<DropReason>,
}

/// Plays the sequence that the bytes describe.
pub fn director(data: &[u8]) {
    director_reaches(data);
}

/// Opens a few flows, then plays the ICMP errors that the bytes describe.
pub fn icmp_quotes(data: &[u8]) {
    icmp_quotes_reach(data);
}

/// Opens a few flows, plays the ICMP errors that the bytes describe, and says what they brought about.
pub fn icmp_quotes_reach(data: &[u8]) -> Reached {
    let Some((settings, steps)) = data.split_first_chunk() else { return Reached::default() };
    // Without limits and checks: what those errors are about are flows.
    let mut settings: [u8; 8] = *settings;
    settings[7] = 0;
    let mut player = script::Player::new(world::Settings::read(&settings));
    player.play_quotes(steps);
    player.finish()
}

/// Plays the sequence that the bytes describe, and says what it brought about.
pub fn director_reaches(data: &[u8]) -> Reached {
    let Some((settings, steps)) = data.split_first_chunk() else { return Reached::default() };
    let mut player = script::Player::new(world::Settings::read(settings));
    player.play(steps);
    player.finish()
}
