// Package control is the control socket of goipip: its protocol, the server that a daemon
// runs, and the client. docs/control.md describes the protocol.
package control
