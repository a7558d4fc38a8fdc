// Package oracle holds goipip against the reference, packet by packet. It has
// nothing but tests.
//
// The reference is Linux's ipip.ko in a User Mode Linux guest. Beside it stands a
// network namespace with goipip. Both are routers with an inner and an underlay
// side and the same configuration; a driver between them sends both the same
// packets into either side, and compares what comes out of any side, byte by
// byte. The counters of the two tunnels are compared too.
//
// Where goipip differs on purpose, a table says so: the rule of docs/rules.md,
// for which packets, and what each side does. A difference that the table does
// not explain is a failure, and so is an entry that explains nothing.
package oracle
