//! Ports of loopback for what tests start, so that tests which run side by side do not meet.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where ports for tests begin and end: below those that the system gives to outgoing connections,
/// so that a node which is down for a while finds its port free again.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Ports that nobody uses now. They are held together until all are known, so that they differ; no
/// two tests of a process get the same, and processes begin at places of their own.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let places = usize::from(PORTS.end - PORTS.start);
    let first = std::process::id() as usize * 97;
    let mut held: Vec<TcpListener> = Vec::new();
    for _ in 0..places {
        if held.len() == count {
            break;
        }
        let place = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % places;
        let port = PORTS.start + u16::try_from(place).expect("within the range");
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    assert_eq!(held.len(), count, "there are not enough free ports");
    held.iter().map(|listener| listener.local_addr().expect("an address").port()).collect()
}
