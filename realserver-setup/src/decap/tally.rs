//! What is counted.

use std::fmt::Write as _;

use super::rules::Reason;

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets taken from the sockets.
    pub received: u64,
    /// Inner packets that the host took.
    pub delivered: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dropped, by [`Reason`], in the order of [`Reason::ALL`].
    pub dropped: [u64; Reason::ALL.len()],
    /// Refused by the TUN device.
    pub refused: u64,
    /// Lost before they were received, because a socket was full.
    pub overflowed: u64,
    /// Delivered with marks of congestion that do not fit together (RFC 6040 §4.2): something on the
    /// path breaks the field.
    pub odd_marks: u64,
}

impl Tally {
    /// Counts a dropped packet.
    pub fn drop(&mut self, reason: Reason) {
        for (known, count) in Reason::ALL.into_iter().zip(&mut self.dropped) {
            *count += u64::from(known == reason);
        }
    }

    /// Names and values of what is lost.
    fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let dropped = Reason::ALL.map(Reason::name).into_iter().zip(self.dropped);
        dropped.chain([("device_refused", self.refused), ("socket_full", self.overflowed)])
    }

    /// What was lost since `before`, in words; `None`: nothing.
    #[must_use]
    pub fn lost_since(&self, before: &Self) -> Option<String> {
        let mut text = String::new();
        for ((name, now), (_, before)) in self.losses().zip(before.losses()) {
            if now > before {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a String cannot fail.
                let _ = write!(text, "{comma}{name} {}", now - before);
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// All of it on one line.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { received, delivered, bytes, odd_marks, .. } = self;
        let lost = self.lost_since(&Self::default()).unwrap_or_else(|| "nothing".to_owned());
        format!(
            "received {received}, delivered {delivered} ({bytes} bytes, {odd_marks} with odd marks of \
             congestion), lost: {lost}"
        )
    }

    /// All of it as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let lost: serde_json::Map<_, _> =
            self.losses().map(|(name, count)| (name.to_owned(), count.into())).collect();
        serde_json::json!({
            "received": self.received,
            "delivered": self.delivered,
            "bytes": self.bytes,
            "odd_marks": self.odd_marks,
            "lost": lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_named_once_per_time() {
        let mut now = Tally { received: 5, delivered: 1, ..Tally::default() };
        assert_eq!(now.lost_since(&Tally::default()), None);
        for reason in Reason::ALL {
            now.drop(reason);
        }
        now.drop(Reason::Stranger);
        let before = now;
        let lost = now.lost_since(&Tally::default()).unwrap();
        assert_eq!(lost, "not_from_a_director 2, malformed 1, not_for_a_vip 1, congestion 1");
        assert_eq!(now.lost_since(&before), None);
        now.overflowed += 3;
        assert_eq!(now.lost_since(&before).unwrap(), "socket_full 3");
        assert_eq!(now.json()["lost"]["not_from_a_director"], 2);
        assert!(now.line().contains("delivered 1 (0 bytes"), "{}", now.line());
    }
}
