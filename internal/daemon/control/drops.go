package control

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"
)

// Directions of a Drop.
const (
	DropOut = "out" // the packet came from the link
	DropIn  = "in"  // it came from the remote end
)

// Drop is a packet that a tunnel dropped, or with an empty Packet only says what is Lost.
type Drop struct {
	Time      time.Time `json:"time"`
	Tunnel    string    `json:"tunnel"`
	Direction string    `json:"direction,omitempty"`
	Reason    string    `json:"reason,omitempty"` // as counted: docs/counters.md
	Rule      string    `json:"rule,omitempty"`   // of docs/rules.md, several with ", " between
	Packet    []byte    `json:"packet,omitempty"` // its beginning
	Outer     int       `json:"outer,omitempty"`  // length of the outer header that Packet begins with, in bytes; 0 without one
	Length    int       `json:"length,omitempty"` // of the whole packet, in bytes
	Lost      uint64    `json:"lost,omitempty"`   // packets that were dropped too, since the Drop before, and found no room
}

// Drops are those of a tunnel from some moment on.
type Drops interface {
	// Next waits for a packet. After Close, or the tunnel's end, it returns what is left,
	// and then false.
	Next() (Drop, bool)
	// Close may be called by another goroutine, and more than once.
	Close()
}

// sendDrops sends what a tunnel drops, until its end or that of the client or the daemon.
func (s *Server) sendDrops(c *net.UnixConn, req Request) {
	var p NameParams
	var drops Drops
	err := params(req, &p)
	if err == nil {
		drops, err = s.handler.Drops(p.Name)
	}
	if err != nil {
		_ = send(c, Response{Error: toError(err)})
		return
	}
	defer drops.Close()
	if send(c, Response{Result: json.RawMessage("{}")}) != nil {
		return
	}
	go func() {
		awaitEnd(c)
		drops.Close()
	}()
	for {
		d, ok := drops.Next()
		if !ok {
			_ = send(c, Response{Result: json.RawMessage("{}")})
			return
		}
		if send(c, Response{Drop: &d}) != nil {
			return
		}
	}
}

// errDisconnected is the end of a connection before that of a capture.
var errDisconnected = errors.New("the goipip process has ended, or did not wait for this program, which took too long to read")

// CaptureDrops has the process send what the tunnel called name drops, which ReadDrops reads.
// The Client is of no other use from then on.
func (c *Client) CaptureDrops(name string) error {
	return c.Call(MethodDrops, NameParams{name}, nil)
}

// ReadDrops calls f with each packet that the tunnel drops, until ctx is done, or the tunnel or
// the process ends, or f returns an error, which it returns. When ctx is done, f still gets
// what was dropped before.
func (c *Client) ReadDrops(ctx context.Context, f func(Drop) error) error {
	_ = c.conn.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() {
		_ = c.conn.SetReadDeadline(time.Now().Add(writeTimeout))
		_ = c.conn.CloseWrite()
	})()
	for {
		r, err := c.response()
		switch {
		case err == nil && r.Drop != nil:
			err = f(*r.Drop)
		case err == nil: // the empty result at the end
			return nil
		case errors.Is(err, ErrEnding):
			err = errDisconnected
		}
		if err != nil {
			return err
		}
	}
}
