//! The addresses at which a process listens.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// The addresses of this process's listening TCP sockets.
pub(crate) fn addresses() -> Vec<SocketAddr> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let own: BTreeSet<String> = links
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let tables = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let is_own = own.contains(&format!("socket:[{}]", columns[9]));
        (columns[3] == LISTENS && is_own).then(|| parse(columns[1]))
    })
    .collect()
}

/// Reads `0100007F:1F90`: the address in words of the machine's byte order, and the port.
fn parse(text: &str) -> SocketAddr {
    let (address, port) = text.split_once(':').unwrap();
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).unwrap();
        u32::from_str_radix(word, 16).unwrap().to_ne_bytes()
    });
    let bytes: Vec<u8> = words.flatten().collect();
    let port = u16::from_str_radix(port, 16).unwrap();
    match <[u8; 4]>::try_from(&*bytes) {
        Ok(four) => (Ipv4Addr::from(four), port).into(),
        Err(_) => (Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).unwrap()), port).into(),
    }
}

#[test]
fn a_listening_socket_is_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    assert!(addresses().contains(&address));
    drop(listener);
    assert!(!addresses().contains(&address));
}
