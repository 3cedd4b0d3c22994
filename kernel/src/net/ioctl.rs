//! The ioctls of interfaces, addresses and routes (netdevice(7)), as ifconfig, route and udhcpc use them.

use crate::arch::uaccess::{self, UserAddr};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use net::Stack;
use net::config::{Config, IfConfig, LOOPBACK, Route};
use net::socket::SockAddr;

const UP: u16 = 1;
const NET_ADMIN: u32 = 12;

fn v4(i: &IfConfig) -> Option<(Ipv4Addr, u8)> {
    i.addrs.iter().find_map(|a| match a.0 {
        IpAddr::V4(x) => Some((x, a.1)),
        IpAddr::V6(_) => None,
    })
}

fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

fn named<'a>(c: &'a Config, req: &[u8; 40]) -> Result<&'a IfConfig> {
    let name = req[..16].split(|c| *c == 0).next().unwrap_or(&[]);
    // An alias (eth0:1) is its interface.
    let name = name.split(|c| *c == b':').next().unwrap_or(name);
    c.by_name(core::str::from_utf8(name).map_err(|_| Errno::ENODEV)?).ok_or(Errno::ENODEV)
}

fn put_addr(req: &mut [u8; 40], a: Ipv4Addr) {
    let b = SockAddr::Inet(a.into(), 0, 0).bytes();
    req[16..32].copy_from_slice(&b[..16]);
}

fn get_addr(req: &[u8]) -> Result<Ipv4Addr> {
    match SockAddr::parse(req)? {
        SockAddr::Inet(IpAddr::V4(a), _, _) => Ok(a),
        _ => Err(Errno::EINVAL),
    }
}

/// Answers an ioctl of the network. `ENOTTY` for others, `ENODEV`, `EADDRNOTAVAIL`, `EPERM`, `EFAULT`.
pub fn ioctl(cmd: u32, arg: UserAddr) -> Result<i64> {
    let stack = super::stack().ok_or(Errno::ENODEV)?;
    match cmd {
        0x8912 => return list(stack, arg),
        0x890b | 0x890c => return route(stack, cmd == 0x890b, arg),
        0x8910..=0x8970 => {}
        _ => return Err(Errno::ENOTTY),
    }
    let mut req: [u8; 40] = uaccess::read_user(arg).map_err(|_| Errno::EFAULT)?;
    if set(stack, cmd, &req)? {
        return Ok(0);
    }
    let config = stack.config();
    if cmd == 0x8910 {
        let index = u32::from_ne_bytes([req[16], req[17], req[18], req[19]]);
        let i = config.interface(index).ok_or(Errno::ENODEV)?;
        req[..16].fill(0);
        let n = i.netif.name.len().min(15);
        req[..n].copy_from_slice(&i.netif.name.as_bytes()[..n]);
    } else {
        get(cmd, named(&config, &req)?, &mut req)?;
    }
    uaccess::write_user(arg, &req).map_err(|_| Errno::EFAULT)?;
    Ok(0)
}

fn get(cmd: u32, i: &IfConfig, req: &mut [u8; 40]) -> Result<()> {
    let addr = || v4(i).ok_or(Errno::EADDRNOTAVAIL);
    let mut word = |n: u32| req[16..20].copy_from_slice(&n.to_ne_bytes());
    match cmd {
        0x8913 => req[16..18].copy_from_slice(&(net::netlink::flags(i) as u16).to_ne_bytes()),
        0x8915 | 0x8917 => put_addr(req, addr()?.0),
        0x8919 => {
            let (a, p) = addr()?;
            put_addr(req, net::config::broadcast(a, p));
        }
        0x891b => put_addr(req, mask(addr()?.1)),
        0x891d => word(0),
        0x8921 => word(i.netif.mtu() as u32),
        0x8927 => {
            req[16..32].fill(0);
            let family: u16 = if i.netif.index == LOOPBACK { 772 } else { 1 };
            req[16..18].copy_from_slice(&family.to_ne_bytes());
            req[18..24].copy_from_slice(&i.netif.mac());
        }
        0x8933 => word(i.netif.index),
        0x8942 => word(1000),
        0x8970 => req[16..40].fill(0),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// Carries out what changes something; false if `cmd` changes nothing.
fn set(stack: &Stack, cmd: u32, req: &[u8; 40]) -> Result<bool> {
    if !matches!(cmd, 0x8914 | 0x8916 | 0x891a | 0x891c | 0x8922 | 0x8924 | 0x8943 | 0x891e) {
        return Ok(false);
    }
    if !crate::sched::current().creds().has(NET_ADMIN) {
        return Err(Errno::EPERM);
    }
    let config = stack.config();
    let i = named(&config, req)?;
    let index = i.netif.index;
    let replace = |old: Option<(Ipv4Addr, u8)>, new: Option<(Ipv4Addr, u8)>| {
        if let Some(o) = old {
            stack.remove_address(index, o.0.into())?;
        }
        new.map_or(Ok(()), |n| stack.add_address(index, n.0.into(), n.1))
    };
    match cmd {
        0x8914 => stack.set_up(index, u16::from_ne_bytes([req[16], req[17]]) & UP != 0)?,
        0x8916 => {
            let a = get_addr(&req[16..])?;
            // The class of the address until a mask is given, as ever.
            let class = match a.octets()[0] {
                0..=127 => 8,
                128..=191 => 16,
                _ => 24,
            };
            replace(v4(i), (!a.is_unspecified()).then_some((a, class)))?;
            stack.set_up(index, true)?;
        }
        0x891c => {
            let m = u32::from(get_addr(&req[16..])?);
            if m.leading_ones() + m.trailing_zeros() < 32 {
                return Err(Errno::EINVAL);
            }
            let old = v4(i).ok_or(Errno::EADDRNOTAVAIL)?;
            replace(Some(old), Some((old.0, m.leading_ones() as u8)))?;
        }
        0x8922 => {
            let mtu = u32::from_ne_bytes([req[16], req[17], req[18], req[19]]);
            stack.set_mtu(index, mtu as usize)?;
        }
        // The broadcast address follows from the mask; metrics and queue lengths have no effect.
        0x891a | 0x891e | 0x8943 => {}
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(true)
}

/// `SIOCGIFCONF`: interfaces with IPv4 addresses.
fn list(stack: &Stack, arg: UserAddr) -> Result<i64> {
    let pair: [u64; 2] = uaccess::read_user(arg).map_err(|_| Errno::EFAULT)?;
    let (room, buf) = (pair[0] as u32 as usize, UserAddr(pair[1]));
    let mut out: Vec<u8> = Vec::new();
    for i in &stack.config().interfaces {
        let Some((a, _)) = v4(i) else { continue };
        let mut req = [0; 40];
        let n = i.netif.name.len().min(15);
        req[..n].copy_from_slice(&i.netif.name.as_bytes()[..n]);
        put_addr(&mut req, a);
        out.extend(req);
    }
    let len = if buf.is_null() { out.len() } else { out.len().min(room / 40 * 40) };
    if !buf.is_null() {
        uaccess::copy_to_user(buf, &out[..len]).map_err(|_| Errno::EFAULT)?;
    }
    uaccess::put_user_u32(arg, len as u32).map_err(|_| Errno::EFAULT)?;
    Ok(0)
}

/// `SIOCADDRT`, `SIOCDELRT`.
fn route(stack: &Stack, add: bool, arg: UserAddr) -> Result<i64> {
    if !crate::sched::current().creds().has(NET_ADMIN) {
        return Err(Errno::EPERM);
    }
    let r: [u8; 120] = uaccess::read_user(arg).map_err(|_| Errno::EFAULT)?;
    let dst = get_addr(&r[8..24])?;
    let gateway = get_addr(&r[24..40]).ok().filter(|g| !g.is_unspecified());
    let mask = get_addr(&r[40..56]).map_or(0, u32::from);
    let flags = u16::from_ne_bytes([r[56], r[57]]);
    let prefix = if flags & 4 != 0 { 32 } else { mask.leading_ones() as u8 };
    let config = stack.config();
    let device = u64::from_ne_bytes([r[88], r[89], r[90], r[91], r[92], r[93], r[94], r[95]]);
    let index = if device == 0 {
        let via = gateway.ok_or(Errno::ENODEV)?;
        config.route(via.into(), 0)?.netif.index
    } else {
        let mut name = [0u8; 16];
        let n = uaccess::strncpy_from_user(&mut name, UserAddr(device)).map_err(|_| Errno::EFAULT)?;
        let name = core::str::from_utf8(&name[..n.min(16)]).map_err(|_| Errno::ENODEV)?;
        config.by_name(name).ok_or(Errno::ENODEV)?.netif.index
    };
    let metric = u32::from(u16::from_ne_bytes([r[80], r[81]]).saturating_sub(1));
    let gateway = gateway.map(IpAddr::V4);
    if add {
        stack.add_route(Route { dst: dst.into(), prefix, gateway, index, metric, origin: Route::BOOT })?;
        return Ok(0);
    }
    stack.remove_route(|r| {
        r.covers(dst.into(), prefix) && r.index == index && (gateway.is_none() || r.gateway == gateway)
    })?;
    Ok(0)
}
