//! How many connections there are, in all and of each peer: who takes too many is told so, and the others are not kept
//! waiting for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The counts.
#[derive(Debug)]
pub(crate) struct Peers {
    most: usize,
    most_of_one: usize,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    total: usize,
    by_peer: HashMap<Peer, usize>,
}

/// Who is taken for one peer: of IPv6 the network, because each host has all the addresses of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are too many in all.
    Full,
    /// This peer has too many.
    Peer,
}

impl Peers {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, counted: Mutex::default() })
    }

    /// Counts a connection in, until what this gives is dropped.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Refused> {
        let peer = Peer::from(address);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.total >= self.most {
            return Err(Refused::Full);
        }
        let of_one = counted.by_peer.entry(peer).or_default();
        if *of_one >= self.most_of_one {
            return Err(Refused::Peer);
        }
        *of_one += 1;
        counted.total += 1;
        Ok(Admitted { peers: Arc::clone(self), peer })
    }

    /// How many there are.
    #[cfg(test)]
    fn total(&self) -> usize {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// A connection that counts.
#[derive(Debug)]
pub(crate) struct Admitted {
    peers: Arc<Peers>,
    peer: Peer,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counted = self.peers.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.total -= 1;
        if let Some(of_one) = counted.by_peer.get_mut(&self.peer) {
            *of_one -= 1;
            // A peer that is gone leaves nothing: the map is as large as there are connections.
            if *of_one == 0 {
                counted.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_has_a_share_and_all_of_them_have_a_limit() {
        let peers = Peers::new(3, 2);
        let first = peers.admit(address("192.0.2.1")).unwrap();
        let _second = peers.admit(address("192.0.2.1")).unwrap();
        assert_eq!(peers.admit(address("192.0.2.1")).unwrap_err(), Refused::Peer);
        let _other = peers.admit(address("192.0.2.2")).unwrap();
        assert_eq!(peers.admit(address("192.0.2.3")).unwrap_err(), Refused::Full);
        drop(first);
        assert!(peers.admit(address("192.0.2.1")).is_ok());
        assert_eq!(peers.total(), 2);
    }

    #[test]
    fn one_peer_in_other_words_is_one_peer() {
        let peers = Peers::new(9, 1);
        let _v4 = peers.admit(address("192.0.2.1")).unwrap();
        assert_eq!(peers.admit(address("::ffff:192.0.2.1")).unwrap_err(), Refused::Peer);
        let _v6 = peers.admit(address("2001:db8::1")).unwrap();
        assert_eq!(peers.admit(address("2001:db8::ffff:2")).unwrap_err(), Refused::Peer);
        assert!(peers.admit(address("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn peers_that_are_gone_leave_nothing() {
        let peers = Peers::new(9, 9);
        for n in 0..200 {
            drop(peers.admit(IpAddr::from([192, 0, 2, n])).unwrap());
        }
        assert_eq!(peers.counted.lock().unwrap().by_peer.len(), 0);
    }
}
