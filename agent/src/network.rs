//! The machine's network: MAC, addresses, routes and name servers for the one interface that there may be, as words of the kernel's command
//! line, or of the message that gives a restored machine its identity.
//!
//!     mayfly.mac=02:00:00:00:00:05 mayfly.address=10.87.0.2/16 mayfly.gateway=10.87.0.1 mayfly.nameserver=9.9.9.9
//!
//! All but the first may come several times.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use crate::sys;

/// Where nobody answers (RFC 863).
const DISCARD: u16 = 9;
const INTERFACE: &str = "eth0";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Addresses come from the host only, so the kernel asks no router for one; any user may ping; and as a packet costs the host the same
/// however long it is, TCP leaves as much as it may to segmentation offload also while it is slow (64 KiB are 44 segments of 1,460 bytes).
const SETTINGS: [(&str, &str); 3] =
    [("net/ipv6/conf/eth0/accept_ra", "0"), ("net/ipv4/ping_group_range", "0 2147483647"), ("net/ipv4/tcp_min_tso_segs", "44")];

// rtnetlink(7), with the numbers of linux/rtnetlink.h, linux/if_addr.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_REQUEST_ACK_CREATE: u16 = 0x1 | 0x4 | 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
/// Nobody else has the address, and looking for a duplicate takes a second.
const IFA_F_NODAD: u8 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER_SIZE: usize = 16;

type Mac = [u8; 6];

/// Bring the network up if there is a word with an address. Else there is no network device, or it is for a machine that is restored
/// from this one.
pub fn set_up(words: &str) -> io::Result<()> {
    let plan = Plan::parse(words)?;
    if plan.addresses.is_empty() {
        return Ok(());
    }
    let index = fs::read_to_string(format!("/sys/class/net/{INTERFACE}/ifindex"))?;
    let index = index.trim_end().parse().map_err(|_| invalid(&index))?;
    for (name, value) in SETTINGS {
        fs::write(format!("/proc/sys/{name}"), value)?;
    }
    let mut netlink = sys::route_netlink()?;
    for message in plan.messages(index) {
        netlink.write_all(&message)?;
        acknowledged(&mut netlink)?;
    }
    // The image may have a link in its place.
    let _ = fs::remove_file(RESOLV_CONF);
    let lines: Vec<String> = plan.nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    fs::create_dir_all("/etc")?;
    fs::write(RESOLV_CONF, lines.concat())
}

/// Show the host that the machine has come to its network: an empty datagram to the gateway, before which the kernel asks for its MAC.
pub fn announce(words: &str) -> io::Result<()> {
    let plan = Plan::parse(words)?;
    let gateway = plan.gateways.first().ok_or_else(|| invalid("a channel over TCP without a gateway"))?;
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&[], (*gateway, DISCARD)).map(drop)
}

/// What the words say.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    mac: Option<Mac>,
    addresses: Vec<(IpAddr, u8)>,
    gateways: Vec<IpAddr>,
    nameservers: Vec<IpAddr>,
}

impl Plan {
    fn parse(words: &str) -> io::Result<Plan> {
        let mut plan = Plan::default();
        for word in words.split_whitespace() {
            match word.split_once('=') {
                Some(("mayfly.mac", value)) => plan.mac = Some(parse_mac(value)?),
                Some(("mayfly.address", value)) => {
                    let (address, prefix) = value.split_once('/').ok_or_else(|| invalid(word))?;
                    plan.addresses.push((parse(address)?, prefix.parse().map_err(|_| invalid(word))?));
                }
                Some(("mayfly.gateway", value)) => plan.gateways.push(parse(value)?),
                Some(("mayfly.nameserver", value)) => plan.nameservers.push(parse(value)?),
                _ => {}
            }
        }
        Ok(plan)
    }

    /// The requests to the kernel, in their order.
    fn messages(&self, index: u32) -> Vec<Vec<u8>> {
        // struct ifinfomsg: family, padding, type, index, flags, which of them to change. The kernel takes the MAC before the flags.
        let link = [&[0; 4][..], &index.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat();
        let mac: Vec<(u16, &[u8])> = self.mac.iter().map(|mac| (IFLA_ADDRESS, &mac[..])).collect();
        let mut messages = vec![message(RTM_NEWLINK, &link, &mac)];
        for (address, prefix) in &self.addresses {
            // struct ifaddrmsg: family, prefix length, flags, scope, index
            let body = [&[family(address), *prefix, IFA_F_NODAD, 0][..], &index.to_ne_bytes()].concat();
            let octets = octets(address);
            messages.push(message(RTM_NEWADDR, &body, &[(IFA_LOCAL, &octets), (IFA_ADDRESS, &octets)]));
        }
        for gateway in &self.gateways {
            // struct rtmsg: family, destination's length, source's length, service, table, protocol, scope, type, flags
            let body = [family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
            messages.push(message(RTM_NEWROUTE, &body, &[(RTA_GATEWAY, &octets(gateway))]));
        }
        messages
    }
}

fn message(kind: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADER_SIZE];
    message.extend(body);
    for (kind, value) in attributes {
        message.extend((4 + value.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize((message.len() + 3) & !3, 0);
    }
    let size = message.len() as u32;
    message[..4].copy_from_slice(&size.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_REQUEST_ACK_CREATE.to_ne_bytes());
    message
}

/// Read the kernel's answer: an error message, with 0 for success.
fn acknowledged(netlink: &mut impl Read) -> io::Result<()> {
    let mut answer = [0; 1024];
    let size = netlink.read(&mut answer)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (size >= HEADER_SIZE + 4 && kind == NLMSG_ERROR, error) {
        (true, 0) => Ok(()),
        (true, error) => Err(io::Error::from_raw_os_error(-error)),
        (false, _) => Err(invalid("the kernel's answer")),
    }
}

fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn parse(text: &str) -> io::Result<IpAddr> {
    text.parse().map_err(|_| invalid(text))
}

fn parse_mac(text: &str) -> io::Result<Mac> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| invalid(text))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} makes no sense", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_command_line_and_leaves_other_words() {
        let line = "quiet mayfly.mac=02:00:00:00:00:0f mayfly.address=10.87.0.2/16 mayfly.gateway=10.87.0.1 mayfly.address=fd00::2/64 \
                    mayfly.nameserver=9.9.9.9 x=y\n";
        let plan = Plan::parse(line).unwrap();
        assert_eq!(plan.mac, Some([2, 0, 0, 0, 0, 15]));
        assert_eq!(plan.addresses, [("10.87.0.2".parse().unwrap(), 16), ("fd00::2".parse().unwrap(), 64)]);
        assert_eq!(plan.gateways, ["10.87.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(plan.nameservers, ["9.9.9.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(Plan::parse("quiet mayfly.channel=virtio:x").unwrap(), Plan::default());
    }

    #[test]
    fn refuses_what_is_no_address() {
        for word in [
            "mayfly.address=10.0.0.1",
            "mayfly.address=10.0.0.1/x",
            "mayfly.address=/8",
            "mayfly.gateway=here",
            "mayfly.nameserver=",
            "mayfly.mac=",
            "mayfly.mac=02:00:00:00:00",
            "mayfly.mac=02:00:00:00:00:00:00",
            "mayfly.mac=02:00:00:00:00:100",
        ] {
            assert!(Plan::parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn asks_for_link_address_and_route_in_that_order() {
        let plan = Plan::parse("mayfly.address=10.87.0.2/16 mayfly.gateway=10.87.0.1").unwrap();
        let messages = plan.messages(2);
        assert_eq!(messages.iter().map(|message| message[4]).collect::<Vec<u8>>(), [16, 20, 24]);
        assert!(messages.iter().all(|message| message[0] as usize == message.len()));
        assert_eq!(messages[1][16..20], [AF_INET, 16, IFA_F_NODAD, 0]);
        assert!(messages[2].ends_with(&[8, 0, 5, 0, 10, 87, 0, 1]));
    }

    #[test]
    fn gives_the_link_its_mac_in_the_message_that_brings_it_up() {
        let plan = Plan::parse("mayfly.mac=02:00:00:00:00:05 mayfly.address=10.87.0.2/16").unwrap();
        let link = &plan.messages(2)[0];
        assert_eq!(link[0] as usize, link.len());
        assert!(link.ends_with(&[10, 0, 1, 0, 2, 0, 0, 0, 0, 5, 0, 0]));
    }

    #[test]
    fn an_answer_is_success_an_error_or_nonsense() {
        let answer = |kind: u16, error: i32| [&[20, 0, 0, 0][..], &kind.to_ne_bytes(), &[0; 10], &error.to_ne_bytes()].concat();
        assert!(acknowledged(&mut &answer(NLMSG_ERROR, 0)[..]).is_ok());
        assert_eq!(acknowledged(&mut &answer(NLMSG_ERROR, -17)[..]).unwrap_err().raw_os_error(), Some(17));
        assert!(acknowledged(&mut &answer(3, 0)[..]).is_err());
        assert!(acknowledged(&mut &[0; 8][..]).is_err());
    }
}
