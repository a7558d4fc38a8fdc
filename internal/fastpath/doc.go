// Package fastpath has the kernel carry packets of tunnels by itself, by two BPF programs:
// one on a tunnel's link, for what leaves, and one on the device that its outer packets come
// by. They take the packets about which there is nothing to decide, by the same Plan as the
// engine, and leave all others to it.
//
// The programs are attached as links (tcx, Linux 6.6), which end with the process.
package fastpath

//go:generate sh generate.sh
