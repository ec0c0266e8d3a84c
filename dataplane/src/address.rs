//! Where other nodes reach this one's change stream.

use std::net::UdpSocket;

use crate::config::Config;

/// The address to register in the change database: the configured one, or this host's as the change database sees it. Empty if
/// it cannot be known.
pub fn of(config: &Config) -> String {
    let stream = &config.change_stream;
    match &stream.address {
        Some(address) if address.contains("://") => address.clone(),
        Some(address) => format!("{}://{address}", stream.scheme),
        None => match local_ip(config.change_db.expose()) {
            Some(std::net::IpAddr::V6(ip)) => format!("{}://[{ip}]:{}", stream.scheme, stream.port),
            Some(ip) => format!("{}://{ip}:{}", stream.scheme, stream.port),
            None => String::new(),
        },
    }
}

/// The address of the interface that leads to `database`. Nothing is sent: connecting a datagram socket only picks a route.
fn local_ip(database: &str) -> Option<std::net::IpAddr> {
    let (host, port) = database.parse::<upstream::Address>().ok()?.first_host()?;
    let targets = std::net::ToSocketAddrs::to_socket_addrs(&(host, port)).ok()?;
    targets.into_iter().find_map(|target| {
        let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        socket.local_addr().ok().map(|local| local.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::local_ip;

    #[test]
    fn the_interface_towards_the_database_is_found() {
        assert!(local_ip("postgres://u:p@127.0.0.1:5432/zero").unwrap().is_loopback());
        assert!(local_ip("postgres://u@127.0.0.1:1,127.0.0.1:2/zero").unwrap().is_loopback());
        assert_eq!(local_ip("postgres://u@/zero?host=/run/postgresql"), None);
    }
}
