package tun

// NewQueue makes a queue of a descriptor that a test brings.
var NewQueue = newQueue
