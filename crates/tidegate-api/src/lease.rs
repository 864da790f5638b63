//! What proves a lease, and what makes a claim safe to repeat, as they are written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidegate::{LeaseToken, Nonce, StoreError, id::Hex};

use crate::message::hex;

/// The proof of a lease, as it is written: how often the message had been claimed, a dot, and the nonce of the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseProof(pub LeaseToken);

impl fmt::Display for LeaseProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.claims, Hex(self.0.nonce.as_bytes()))
    }
}

impl FromStr for LeaseProof {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        // Not with its value: it is a secret, even where it is wrong.
        let wrong = || {
            StoreError::invalid("the lease token cannot be read")
                .hint("send the member \"token\" of the lease as it was given: 1.9f86d081884c7d659a2feaa0c55ad015")
        };
        let (claims, nonce) = text.split_once('.').ok_or_else(wrong)?;
        let is_plain = !claims.is_empty() && claims.bytes().all(|b| b.is_ascii_digit());
        let claims = claims.parse().ok().filter(|_| is_plain).ok_or_else(wrong)?;
        Ok(Self(LeaseToken { claims, nonce: Nonce::from_bytes(hex(nonce).ok_or_else(wrong)?) }))
    }
}

/// What a worker makes for one claim: 16 random bytes, as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimNonce(pub Nonce);

impl fmt::Display for ClaimNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(self.0.as_bytes()).fmt(f)
    }
}

impl FromStr for ClaimNonce {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = || {
            StoreError::invalid("the nonce of the claim cannot be read")
                .hint("32 lowercase hexadecimal digits, from 16 random bytes")
        };
        Ok(Self(Nonce::from_bytes(hex(text).ok_or_else(wrong)?)))
    }
}

/// Sixteen bytes as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl FromStr for Digest {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let short: String = text.chars().take(40).collect();
        let wrong = || StoreError::invalid(format!("not 32 lowercase hexadecimal digits: {short:?}"));
        hex(text).map(Self).ok_or_else(wrong)
    }
}

macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

as_text!(LeaseProof, ClaimNonce, Digest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_reads_back_from_what_it_prints_and_does_not_show_itself() {
        let proof = LeaseProof(LeaseToken { claims: 3, nonce: Nonce::from_bytes([0xab; 16]) });
        let text = proof.to_string();
        assert_eq!(text, format!("3.{}", "ab".repeat(16)));
        assert_eq!(text.parse(), Ok(proof));
        assert!(!format!("{proof:?}").contains("abab"));
    }

    #[test]
    fn what_is_no_proof_is_refused_without_being_told() {
        let digits = "ab".repeat(16);
        for wrong in ["", ".", "1", &digits, &format!("-1.{digits}"), &format!("+1.{digits}"), &format!("1.{digits}0")]
        {
            let error = wrong.parse::<LeaseProof>().unwrap_err();
            assert!(!error.to_string().contains(&digits), "{error}");
        }
        assert!("AB".repeat(16).parse::<ClaimNonce>().is_err(), "one way to write it, and no other");
    }
}
