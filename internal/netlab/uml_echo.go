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
	"time"
)

// Echo sends n pseudo-random bytes from host to the guest and back, both at once, through one TCP connection. The guest
// makes it, by socat(1), to a listener of host at addr, where port 0 lets the kernel choose. It is an error that anything
// else comes back, or that ctx ends before all has; the result then says how much did.
func (g *Guest) Echo(ctx context.Context, host *Host, addr netip.AddrPort, n int64) (TransferResult, error) {
	result, err := g.echo(ctx, host, addr, n)
	if err == nil && result.SumReceived != result.SumSent {
		err = fmt.Errorf("sha256 of what came back is %x, that of what was sent %x", result.SumReceived, result.SumSent)
	}
	if err != nil {
		return result, fmt.Errorf("send %d bytes from %v on host %s to a guest and back, of which %d came: %w",
			n, addr, host.Name, result.Bytes, errors.Join(ctx.Err(), err))
	}
	return result, nil
}

func (g *Guest) echo(ctx context.Context, host *Host, addr netip.AddrPort, n int64) (TransferResult, error) {
	var listener net.Listener
	err := host.Do(func() (err error) {
		listener, err = net.Listen("tcp", addr.String())
		return err
	})
	if err != nil {
		return TransferResult{}, err
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()

	start := time.Now()
	guestEnd := make(chan error, 1)
	go func() {
		// It gives up after ten seconds without a connection, or without a byte.
		_, err := g.Run(fmt.Sprintf("socat -T 10 TCP:%v,connect-timeout=10 EXEC:cat", listener.Addr()))
		// There is one connection only.
		listener.Close()
		guestEnd <- err
	}()
	conn, err := listener.Accept()
	if err != nil {
		return TransferResult{}, errors.Join(<-guestEnd, err)
	}
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()

	result, err := sendAndReceive(conn, n)
	result.Duration = time.Since(start)
	return result, errors.Join(err, conn.Close(), <-guestEnd)
}

// sendAndReceive sends n bytes and receives as many.
func sendAndReceive(conn net.Conn, n int64) (TransferResult, error) {
	var result TransferResult
	sent := make(chan error, 1)
	go func() {
		hash := sha256.New()
		_, err := io.CopyN(io.MultiWriter(conn, hash), content(rand.Uint64()), n)
		hash.Sum(result.SumSent[:0])
		sent <- err
	}()
	hash := sha256.New()
	var err error
	result.Bytes, err = io.CopyN(hash, conn, n)
	hash.Sum(result.SumReceived[:0])
	return result, errors.Join(err, <-sent)
}
