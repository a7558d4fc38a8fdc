//go:build !linux

// Command goipip needs Linux: it stands for a module of that kernel, and works by its
// TUN devices, raw sockets and netlink. On any other system the build ends here.
package main

const _ = goipip_needs_Linux
