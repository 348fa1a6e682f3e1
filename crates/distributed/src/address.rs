//! Chooses the address at which this process listens for the others of a group.

use std::{
    env, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
};

use crate::shim::Binding;

/// PyTorch's variable for the interfaces that Gloo uses, separated by commas.
const INTERFACES: &str = "GLOO_SOCKET_IFNAME";

/// The interfaces that the environment names.
pub(crate) fn from_environment() -> Option<Binding> {
    let names = env::var(INTERFACES).ok()?;
    let names = names.split(',').map(str::trim);
    let names: Vec<String> = names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    (!names.is_empty()).then_some(Binding::Interfaces(names))
}

/// How this process reaches the store's host: the address of its own interface, and that of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) own: IpAddr,
    pub(crate) host: IpAddr,
}

impl Route {
    /// Asks the kernel for the route. Sends nothing. Prefers IPv4 if the host has both kinds of addresses.
    pub(crate) fn to(host: &str, port: u16) -> io::Result<Self> {
        let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let mut last = io::Error::other("the name has no address");
        for address in addresses {
            let any: SocketAddr = match address {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let socket = UdpSocket::bind(any).and_then(|socket| {
                socket.connect(address)?;
                socket.local_addr()
            });
            match socket {
                Ok(own) => {
                    let (own, host) = (own.ip(), address.ip());
                    return Ok(Self { own, host });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(crate) fn to_text(self) -> String {
        format!("{} {}", self.own, self.host)
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (own, host) = text.split_once(' ')?;
        Some(Self {
            own: own.parse().ok()?,
            host: host.parse().ok()?,
        })
    }
}

/// The address at which a rank listens, from the routes of all ranks.
///
/// It is the rank's own address on the route to the store's host. On that host itself, the name may stand for the
/// loopback interface (`127.0.1.1` in Debian's `/etc/hosts`), which other machines cannot reach. If any rank uses
/// another interface, the ranks on the host listen at the address by which that rank reaches the host.
pub(crate) fn listens_at(rank: usize, routes: &[Route]) -> Option<IpAddr> {
    let own = routes.get(rank)?.own;
    if !own.is_loopback() {
        return Some(own);
    }
    let other = routes.iter().find(|route| !route.own.is_loopback());
    Some(other.map_or(own, |route| route.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(own: &str, host: &str) -> Route {
        Route::parse(format!("{own} {host}").as_bytes()).unwrap()
    }

    #[test]
    fn on_one_machine_the_loopback_interface_is_used() {
        let route = Route::to("127.0.0.1", 1).unwrap();
        assert!(route.own.is_loopback() && route.host.is_loopback());
        let routes = [route, Route::to("localhost", 1).unwrap()];
        assert_eq!(listens_at(1, &routes), Some(routes[1].own));
        assert!(routes[1].own.is_loopback() && routes[1].own.is_ipv4());
    }

    #[test]
    fn each_rank_listens_where_it_reaches_the_store() {
        let routes = [
            route("10.0.0.1", "10.0.0.1"),
            route("10.0.0.2", "10.0.0.1"),
            route("fd00::3", "fd00::1"),
        ];
        for (rank, route) in routes.iter().enumerate() {
            assert_eq!(listens_at(rank, &routes), Some(route.own));
        }
        assert_eq!(listens_at(3, &routes), None);
    }

    #[test]
    fn the_hosts_own_name_for_itself_does_not_hide_it() {
        let routes = [
            route("127.0.0.1", "127.0.1.1"),
            route("127.0.0.1", "127.0.1.1"),
            route("10.0.0.2", "10.0.0.1"),
        ];
        let host = routes[2].host;
        assert_eq!(listens_at(0, &routes), Some(host));
        assert_eq!(listens_at(1, &routes), Some(host));
        assert_eq!(listens_at(2, &routes), Some(routes[2].own));
    }

    #[test]
    fn a_route_survives_the_store() {
        let route = route("fd00::2", "10.0.0.1");
        assert_eq!(Route::parse(route.to_text().as_bytes()), Some(route));
        for bad in ["", "10.0.0.1", "a b", "10.0.0.1 10.0.0.2 10.0.0.3"] {
            assert_eq!(Route::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
