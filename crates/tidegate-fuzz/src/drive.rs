//! Throws changed inputs at a target: bits flipped, parts left out, doubled, and put together from two, words put in, and
//! now and then bytes of chance alone. It sees no coverage; for that there is libFuzzer. It needs no other compiler, and the
//! same seed gives the same inputs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// No input is made longer.
const LONGEST: usize = 4096;
/// What decoders look for, and what other decoders trip over.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"-0",
    b"1e400",
    b"01",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"9007199254740993.0",
    b"0.1e-400",
    b"%",
    b"%00",
    b"%zz",
    b"=",
    b";",
    b"|",
    b"/",
    b"..",
    b"*",
    b"@",
    b"://",
    b"\r\n",
    b"\n",
    b"\n\n",
    b"\t",
    b"\0",
    b"\x7f",
    b"\xff",
    b"\xc3\x28",
    "\u{feff}".as_bytes(),
    "\u{2028}".as_bytes(),
    "𝄞".as_bytes(),
    b"msg_",
    b"tg_",
    b"Bearer ",
    b"2026-11-29T10:00:00Z",
    b"9999-12-31T23:59:60Z",
    b"500ms",
    b"d",
    b"KiB",
];

/// So many inputs, made from a number.
#[derive(Debug, Clone, Copy)]
pub struct Drive {
    /// The same number gives the same inputs.
    pub seed: u64,
    /// How many, besides the seeds as they are.
    pub inputs: u64,
}

impl Drive {
    /// Throws every seed of a directory at a target, and then what can be made of them.
    ///
    /// # Panics
    /// As the target did, after saying with which bytes; and where the directory has no seed.
    pub fn run(self, name: &str, seeds: &Path, target: impl Fn(&[u8])) {
        let seeds = read(seeds);
        assert!(!seeds.is_empty(), "there are no seeds of {name}");
        self.run_on(name, &seeds, target);
    }

    /// The same with seeds that are at hand.
    ///
    /// # Panics
    /// As the target did, after saying with which bytes.
    pub fn run_on(self, name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
        for seed in seeds {
            once(name, seed, &target);
        }
        let mut chance = Chance(self.seed);
        for _ in 0..self.inputs {
            let input = chance.input(seeds);
            once(name, &input, &target);
        }
    }
}

/// The files of a directory, in the order of their names.
fn read(directory: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory).map(|entries| entries.filter_map(Result::ok).collect());
    let mut entries: Vec<std::fs::DirEntry> = entries.unwrap_or_default();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    entries.iter().filter_map(|entry| std::fs::read(entry.path()).ok()).collect()
}

#[expect(clippy::print_stderr, reason = "whoever looks into a failure needs the bytes that made it")]
fn once(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("{name} broke with {} bytes: b\"{}\"", input.len(), input.escape_ascii());
        eprintln!("hint: as a file in fuzz/seeds/{name} they are tried each time");
        resume_unwind(panic);
    }
}

/// Numbers that look like chance (SplitMix64), and what is made with them.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is at least 1.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap_or(u64::MAX)).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(16) == 0 {
            return (0..self.below(64)).map(|_| self.byte()).collect();
        }
        let mut input = self.of(seeds).clone();
        for _ in 0..=self.below(5) {
            self.change(&mut input, seeds);
        }
        input.truncate(LONGEST);
        input
    }

    /// A part of an input, of any length but mostly a short one.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let most = if self.below(4) == 0 { length } else { 8 };
        from..(from + self.below(most + 1)).min(length)
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => drop(input.drain(self.part(input.len()))),
            3 => {
                let part = input[self.part(input.len())].to_vec();
                let most = if self.below(8) == 0 { 200 } else { 2 };
                let times = 1 + self.below(most);
                let room = LONGEST.saturating_sub(input.len());
                let repeated = part.repeat(times);
                drop(input.splice(at..at, repeated.into_iter().take(room)));
            }
            4 | 5 => drop(input.splice(at..at, self.of(WORDS).iter().copied())),
            6 => {
                let part = self.part(input.len());
                drop(input.splice(part, self.of(WORDS).iter().copied()));
            }
            7 => {
                // The beginning of one, and the end of another.
                let other = self.of(seeds);
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let other = self.of(seeds);
                let part = self.part(other.len());
                let taken = other[part].to_vec();
                drop(input.splice(at..at, taken));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashSet;

    use super::*;

    fn thrown(seed: u64) -> Vec<Vec<u8>> {
        let seen = RefCell::new(Vec::new());
        let seeds = [b"{\"a\":1}".to_vec(), Vec::new()];
        Drive { seed, inputs: 500 }.run_on("x", &seeds, |bytes| seen.borrow_mut().push(bytes.to_vec()));
        seen.into_inner()
    }

    #[test]
    fn the_same_number_gives_the_same_inputs_and_they_differ() {
        let inputs = thrown(1);
        assert_eq!(inputs, thrown(1));
        assert_ne!(inputs, thrown(2));
        assert_eq!(inputs[..2], [b"{\"a\":1}".to_vec(), Vec::new()], "the seeds themselves come first");
        let different: HashSet<&Vec<u8>> = inputs.iter().collect();
        assert!(different.len() > 300, "{}", different.len());
        assert!(inputs.iter().all(|input| input.len() <= LONGEST));
    }

    #[test]
    fn what_a_target_does_not_bear_fails_the_run() {
        let broken = catch_unwind(|| {
            Drive { seed: 1, inputs: 2000 }.run_on("x", &[b"abc".to_vec()], |bytes| assert!(!bytes.contains(&b'%')));
        });
        assert!(broken.is_err(), "2000 inputs without a percent sign");
    }

    #[test]
    fn a_target_without_seeds_is_refused() {
        let none = catch_unwind(|| Drive { seed: 1, inputs: 1 }.run("x", Path::new("no/such/directory"), |_| {}));
        assert!(none.is_err());
    }
}
