package control_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
)

// Drops captures what the tunnel called dropping drops.
func (b *book) Drops(name string) (control.Drops, error) {
	if name != "dropping" {
		return nil, control.ErrNotFound
	}
	return b.drops, nil
}

// drops are those that a test sends.
type drops struct {
	c     chan control.Drop
	end   chan struct{}
	close func()
}

func newDrops() *drops {
	d := &drops{c: make(chan control.Drop, 16), end: make(chan struct{})}
	d.close = sync.OnceFunc(func() { close(d.end) })
	return d
}

func (d *drops) Next() (control.Drop, bool) {
	select {
	case drop := <-d.c:
		return drop, true
	default:
	}
	select {
	case drop := <-d.c:
		return drop, true
	case <-d.end:
	}
	return control.Drop{}, false
}

func (d *drops) Close() { d.close() }

// Drops arrive as they are, and what was dropped before a client has enough arrives too.
func TestDrops(t *testing.T) {
	b := newBook()
	b.drops = newDrops()
	path := serve(t, b, control.NewEvents())
	if err := dial(t, path).CaptureDrops("tun09"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("drops of no tunnel: %v", err)
	}
	c := dial(t, path)
	if err := c.CaptureDrops("dropping"); err != nil {
		t.Fatal(err)
	}
	want := []control.Drop{
		{
			Time: time.Unix(1, 2).UTC(), Tunnel: "dropping", Direction: control.DropIn, Reason: "ttl_expired", Rule: "G3",
			Packet: []byte{0x45, 0, 0xff}, Outer: 20, Length: 1500,
		},
		{Tunnel: "dropping", Direction: control.DropOut, Reason: "loop", Rule: "T4, G4", Packet: []byte{}, Lost: 3},
		{Tunnel: "dropping", Lost: 1 << 40},
	}
	ctx, cancel := context.WithCancel(labtest.Context(t))
	var got []control.Drop
	b.drops.c <- want[0]
	err := c.ReadDrops(ctx, func(d control.Drop) error {
		got = append(got, d)
		if len(got) == 1 {
			b.drops.c <- want[1]
			b.drops.c <- want[2]
			cancel()
		}
		return nil
	})
	if want[1].Packet = nil; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// A connection that is lost is not the end of a capture.
func TestDrops_Disconnected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = conn.Write([]byte(`{"version":1,"result":{}}` + "\n" + `{"version":1,"drop":{"tunnel":"dropping"}}` + "\n"))
			conn.Close()
		}
	}()
	c := dial(t, path)
	if err := c.CaptureDrops("dropping"); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := c.ReadDrops(labtest.Context(t), func(control.Drop) error { n++; return nil }); err == nil || n != 1 {
		t.Errorf("%d packets, %v", n, err)
	}
}

// A capture ends with its tunnel, with the daemon, and with a client that goes without a word;
// and what a client does with a drop may fail.
func TestDrops_End(t *testing.T) {
	start := func(t *testing.T) (b *book, c *control.Client, stop func()) {
		b = newBook()
		b.drops = newDrops()
		path := filepath.Join(t.TempDir(), "control")
		stop = serveAt(t, path, b, control.NewEvents())
		c = dial(t, path)
		if err := c.CaptureDrops("dropping"); err != nil {
			t.Fatal(err)
		}
		return b, c, stop
	}
	for name, end := range map[string]func(b *book, stop func()){
		"tunnel": func(b *book, _ func()) { b.drops.Close() },
		"daemon": func(_ *book, stop func()) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			b, c, stop := start(t)
			n := 0
			b.drops.c <- control.Drop{Tunnel: "dropping"}
			end(b, stop)
			if err := c.ReadDrops(labtest.Context(t), func(control.Drop) error { n++; return nil }); err != nil || n != 1 {
				t.Errorf("%d packets, %v, want the one", n, err)
			}
		})
	}
	t.Run("client", func(t *testing.T) {
		b, c, _ := start(t)
		c.Close()
		labtest.Within(t, "the end of the capture", b.drops.end)
	})
	t.Run("function", func(t *testing.T) {
		b, c, _ := start(t)
		b.drops.c <- control.Drop{}
		if err := c.ReadDrops(labtest.Context(t), func(control.Drop) error { return io.ErrShortWrite }); err != io.ErrShortWrite {
			t.Errorf("%v, want %v", err, io.ErrShortWrite)
		}
	})
}

// Clients that connect while a server closes are served, told that it ends, or not accepted.
func TestServer_CloseWhileClientsConnect(t *testing.T) {
	for range 10 {
		path := filepath.Join(t.TempDir(), "control")
		stop := serveAt(t, path, newBook(), control.NewEvents())
		var clients sync.WaitGroup
		first := make(chan struct{}, 4)
		for range 4 {
			clients.Go(func() {
				for {
					conn, err := net.Dial("unix", path)
					if err != nil {
						return // the server has ended
					}
					conn.Close()
					select {
					case first <- struct{}{}:
					default:
					}
				}
			})
		}
		labtest.Within(t, "a client", first)
		stop()
		clients.Wait()
	}
}
