package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"goipip/internal/tunnel"
)

// callTimeout bounds a request: adding a tunnel waits for those that are added at the same
// time.
const callTimeout = 30 * time.Second

// Client is a connection to a goipip process. One goroutine at a time may use it.
type Client struct {
	conn  *net.UnixConn
	lines *bufio.Reader
}

func newClient(c *net.UnixConn) *Client { return &Client{c, bufio.NewReaderSize(c, 64<<10)} }

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Call sends a request and reads the answer into result, which may be nil. What the process
// answers instead is an *Error, and ErrEnding if the process ends before it answers.
func (c *Client) Call(method string, params, result any) error {
	if err := c.request(method, params); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(callTimeout))
	r, err := c.response()
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(r.Result, result)
}

func (c *Client) request(method string, params any) error {
	p, err := json.Marshal(params)
	if err != nil {
		return err
	}
	line, err := json.Marshal(Request{Version, method, p})
	if err != nil {
		return err
	}
	if len(line) >= maxRequest {
		return badRequest(fmt.Errorf("more than %d bytes in one line", maxRequest))
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = c.conn.Write(append(line, '\n'))
	if errors.Is(err, syscall.EPIPE) {
		return nil // a server that refuses the connection has said so, before the request
	}
	return err
}

func (c *Client) response() (r Response, err error) {
	line, err := c.lines.ReadBytes('\n')
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return r, ErrEnding
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("answer of the daemon: %w", err)
	}
	if r.Error != nil {
		return r, r.Error
	}
	return r, nil
}

// Events calls f with each event, a log line as JSON, until the process ends, which is
// ErrEnding, or f returns an error.
func (c *Client) Events(f func(json.RawMessage) error) error {
	if err := c.request(MethodEvents, struct{}{}); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	for {
		r, err := c.response()
		if err == nil && r.Event != nil {
			err = f(r.Event)
		}
		if err != nil {
			return err
		}
	}
}

// Dial connects to the daemon: at path, or without one to that of the calling thread's
// network namespace. The error is fs.ErrNotExist if there is none.
func Dial(path string) (*Client, error) {
	all, err := places(path)
	if err != nil {
		return nil, err
	}
	err = fs.ErrNotExist
	for _, p := range all {
		c, dialErr := p.dial()
		if dialErr == nil {
			return c, nil
		}
		if !errors.Is(dialErr, fs.ErrNotExist) {
			err = dialErr
		}
	}
	return nil, err
}

// DialAll connects to all goipip processes of the calling thread's network namespace, the
// daemon first; or with a path to the one there. Sockets that killed processes have left
// are removed. Without any process, clients is empty.
func DialAll(path string) (clients []*Client, err error) {
	all, err := places(path)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		names := []string{p.name}
		if path == "" {
			entries, _ := os.ReadDir(p.dir.Path(""))
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), socketName+"-") {
					names = append(names, e.Name())
				}
			}
		}
		for _, name := range names {
			beside := place{p.dir, name}
			c, dialErr := beside.dial()
			switch {
			case dialErr == nil:
				clients = append(clients, c)
			case errors.Is(dialErr, errGone) && name != p.name:
				os.Remove(beside.path())
				p.dir.Tidy()
			case !errors.Is(dialErr, fs.ErrNotExist):
				err = dialErr
			}
		}
	}
	if len(clients) > 0 {
		err = nil // of directories of no use to this user
	}
	return clients, err
}

// startTimeout bounds the start of a daemon, and the waits for others that start one.
const startTimeout = 10 * time.Second

// AddTunnel adds a tunnel to the daemon at path, or without one to that of the calling
// thread's network namespace, and returns the name of its link. If there is no daemon, it
// calls start, which returns when one listens; of several processes, one at a time does.
func AddTunnel(path string, cfg tunnel.Config, start func() error) (name string, err error) {
	for end := time.Now().Add(startTimeout); ; {
		name, err = addTunnel(path, cfg, start)
		// A daemon that is about to exit carries nothing out.
		if !errors.Is(err, ErrEnding) && !errors.Is(err, ErrRuns) || time.Now().After(end) {
			return name, err
		}
		time.Sleep(time.Millisecond)
	}
}

func addTunnel(path string, cfg tunnel.Config, start func() error) (string, error) {
	c, err := Dial(path)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = dialStarted(path, start)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	var a Added
	err = c.Call(MethodAdd, TunnelParams{Tunnel: cfg}, &a)
	return a.Name, err
}

// dialStarted connects to a daemon that is started if there is none.
func dialStarted(path string, start func() error) (*Client, error) {
	all, err := places(path)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range all {
		lock, err := p.dir.LockWithin(startTimeout, p.name+".start")
		if err != nil {
			errs = append(errs, fmt.Errorf("control socket %s: %w", p.path(), err))
			continue
		}
		c, err := p.startAndDial(path, start)
		lock.Release()
		return c, err
	}
	return nil, errors.Join(errs...)
}

func (p place) startAndDial(path string, start func() error) (*Client, error) {
	c, err := Dial(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err // another process has started it meanwhile
	}
	if err := start(); err != nil {
		return nil, err
	}
	return Dial(path)
}
