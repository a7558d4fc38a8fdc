package netlab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// TransferResult is what a transfer did.
type TransferResult struct {
	// Bytes is what arrived.
	Bytes int64
	// Duration is the time from the start of connecting to the arrival of the end.
	Duration time.Duration
	// SumSent and SumReceived are the SHA-256 of what was sent and of what arrived.
	SumSent, SumReceived [sha256.Size]byte
}

// Transfer sends n pseudo-random bytes, different ones each time, through one TCP connection from a socket of from to a
// listener of to at addr, where port 0 lets the kernel choose. It is an error that anything else arrives, or that ctx
// ends before all has; the result then says what had arrived.
func Transfer(ctx context.Context, from, to *Host, addr netip.AddrPort, n int64) (TransferResult, error) {
	result, err := transfer(ctx, from, to, addr, n)
	if err == nil && result.SumReceived != result.SumSent {
		err = fmt.Errorf("sha256 of what arrived is %x, that of what was sent %x", result.SumReceived, result.SumSent)
	}
	if err != nil {
		return result, fmt.Errorf("transfer %d bytes from host %s to %v on host %s, of which %d arrived: %w",
			n, from.Name, addr, to.Name, result.Bytes, err)
	}
	return result, nil
}

func transfer(ctx context.Context, from, to *Host, addr netip.AddrPort, n int64) (result TransferResult, err error) {
	var listener *net.TCPListener
	if err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	}); err != nil {
		return result, err
	}
	defer listener.Close()

	// The first error of either side ends the other, and becomes the cause.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	start := time.Now()
	received := make(chan struct{})
	go func() {
		defer close(received)
		var err error
		if result.Bytes, result.SumReceived, err = receive(ctx, listener); err != nil {
			cancel(err)
		}
		result.Duration = time.Since(start)
	}()
	if result.SumSent, err = send(ctx, from, listener.Addr().String(), n); err != nil {
		cancel(err)
	}
	<-received
	return result, context.Cause(ctx)
}

// send returns the SHA-256 of the n bytes that it sent.
func send(ctx context.Context, from *Host, addr string, n int64) (sum [sha256.Size]byte, err error) {
	var conn net.Conn
	err = from.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done() // It is the deadline of ctx, which the dialer has noticed first.
	}
	if err != nil {
		return sum, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()

	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(conn, hash), content(rand.Uint64()), n); err != nil {
		return sum, err
	}
	hash.Sum(sum[:0])
	return sum, nil
}

// receive returns the length and SHA-256 of what comes through the first connection until its end.
func receive(ctx context.Context, listener *net.TCPListener) (n int64, sum [sha256.Size]byte, err error) {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	conn, err := listener.Accept()
	if err != nil {
		return 0, sum, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()

	hash := sha256.New()
	if n, err = io.Copy(hash, conn); err != nil {
		return n, sum, err
	}
	hash.Sum(sum[:0])
	return n, sum, nil
}
