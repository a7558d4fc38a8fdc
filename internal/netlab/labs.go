package netlab

import "errors"

// Lab1 builds three hosts, with no tunnel yet:
//
//	host01 eth0 ───────────────── eth1 between eth2 ───────────────── eth0 host02
//	       10.90.6.238/24   10.90.6.1/24   192.168.1.1/24   192.168.1.129/24
//
// The one between them forwards, and is the others' way to everywhere.
func (l *Lab) Lab1() (host01, host02, between *Host, err error) {
	for name, host := range map[string]**Host{"host-01": &host01, "host-02": &host02, "between": &between} {
		if *host, err = l.Host(name); err != nil {
			return nil, nil, nil, err
		}
	}
	err = errors.Join(
		l.Veth(host01, "eth0", between, "eth1"),
		l.Veth(host02, "eth0", between, "eth2"),
		host01.AddAddr("eth0", "10.90.6.238/24"),
		between.AddAddr("eth1", "10.90.6.1/24"),
		host02.AddAddr("eth0", "192.168.1.129/24"),
		between.AddAddr("eth2", "192.168.1.1/24"),
		host01.AddRoute("default", "10.90.6.1"),
		host02.AddRoute("default", "192.168.1.1"),
		between.Sysctl("net.ipv4.ip_forward", "1"),
	)
	return host01, host02, between, err
}

// Lab2 builds three hosts, with no tunnel yet:
//
//	ns01 veth01 ──────────────────── veth01_p router veth02_p ──────────────────── veth02 ns02
//	     192.168.6.101/24   192.168.6.1/24          192.168.8.1/24   192.168.8.101/24
//
// The router forwards, and ns01 and ns02 route to each other's /24 through it.
func (l *Lab) Lab2() (ns01, ns02, router *Host, err error) {
	for name, host := range map[string]**Host{"ns01": &ns01, "ns02": &ns02, "router": &router} {
		if *host, err = l.Host(name); err != nil {
			return nil, nil, nil, err
		}
	}
	err = errors.Join(
		l.Veth(ns01, "veth01", router, "veth01_p"),
		l.Veth(ns02, "veth02", router, "veth02_p"),
		ns01.AddAddr("veth01", "192.168.6.101/24"),
		ns02.AddAddr("veth02", "192.168.8.101/24"),
		router.AddAddr("veth01_p", "192.168.6.1/24"),
		router.AddAddr("veth02_p", "192.168.8.1/24"),
		ns01.AddRoute("192.168.8.0/24", "192.168.6.1"),
		ns02.AddRoute("192.168.6.0/24", "192.168.8.1"),
		router.Sysctl("net.ipv4.ip_forward", "1"),
	)
	return ns01, ns02, router, err
}
