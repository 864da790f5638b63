//! Idempotency keys as clients send them: UUIDs that follow each other at random, or that grow with time (version 7).

use serde::Serialize;
use tidegate::IdempotencyKey;

/// How keys follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOrder {
    /// At random: each new key falls somewhere into the index.
    Random,
    /// Growing with time: each new key falls at its end.
    Time,
}

impl KeyOrder {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Time => "time-ordered",
        }
    }
}

/// A key with the sixteen bytes by which a store finds it.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) hash: [u8; 16],
}

/// Makes keys, the same ones from the same seed.
#[derive(Debug)]
pub(crate) struct Keys {
    order: KeyOrder,
    state: u64,
    made: u64,
}

impl Keys {
    pub(crate) fn new(order: KeyOrder, seed: u64) -> Self {
        Self { order, state: seed, made: 0 }
    }

    pub(crate) fn take(&mut self, count: u32) -> Vec<Key> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Key {
        let (mut high, mut low) = (self.random(), self.random());
        if self.order == KeyOrder::Time {
            // As one client makes them: a millisecond, a counter in it, and chance behind.
            let millis = 1_700_000_000_000 + self.made / 16;
            high = millis << 16 | 0x7000 | (self.made % 16) << 8 | high & 0xff;
        } else {
            high = high & !0xf000 | 0x4000;
        }
        low = low & !(0b11 << 62) | 0b10 << 62;
        self.made += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        let text = format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        );
        Key { text, hash: bytes }
    }

    /// SplitMix64: good enough to scatter keys, and the same on every machine.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl Key {
    /// The key as the store's verbs take it.
    pub(crate) fn checked(&self) -> IdempotencyKey {
        IdempotencyKey::new(self.text.clone()).expect("a UUID is visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_own_bytes() {
        for order in [KeyOrder::Random, KeyOrder::Time] {
            for key in Keys::new(order, 7).take(100) {
                assert_eq!(key.checked().hash(), key.hash, "{}", key.text);
            }
        }
    }

    #[test]
    fn keys_of_time_grow_and_random_ones_do_not() {
        let hashes = |order| Keys::new(order, 7).take(1000).into_iter().map(|key| key.hash).collect::<Vec<_>>();
        assert!(hashes(KeyOrder::Time).is_sorted());
        let mut random = hashes(KeyOrder::Random);
        assert!(!random.is_sorted());
        random.sort_unstable();
        random.dedup();
        assert_eq!(random.len(), 1000);
    }
}
