package netlab

import "errors"

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
