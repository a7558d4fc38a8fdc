package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"goipip/internal/tunnel"
)

// Limits of connections.
const (
	maxConnections = 128
	idleTimeout    = time.Minute     // for a request to begin and end
	writeTimeout   = 5 * time.Second // for a client to take an answer
)

// Handler carries out requests. Any number of goroutines call it.
type Handler interface {
	Add(tunnel.Config) (name string, err error)
	Change(name string, cfg tunnel.Config) error
	Delete(name string) error
	List(counters bool) []Tunnel
	// Status describes the tunnel of a name, or with an empty one all tunnels.
	Status(name string) (Status, error)
	// Drops captures what the tunnel called name drops.
	Drops(name string) (Drops, error)
}

// Server answers the requests of any number of clients.
type Server struct {
	handler Handler
	events  *Events

	mu      sync.Mutex
	conns   map[*net.UnixConn]struct{}
	closing bool
	serving sync.WaitGroup
}

// NewServer returns a Server whose clients can follow events.
func NewServer(h Handler, events *Events) *Server {
	return &Server{handler: h, events: events, conns: map[*net.UnixConn]struct{}{}}
}

// Serve accepts connections until Close, which closes l.
func (s *Server) Serve(l *Listener) error {
	for {
		c, err := l.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Too many descriptors, say. Those that wait are accepted later.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.start(c)
	}
}

// start serves a connection. Close waits for those that are served by a goroutine; once it
// does, none may be added (sync.WaitGroup), and a client is only told.
func (s *Server) start(c *net.UnixConn) {
	s.mu.Lock()
	closing := s.closing
	if !closing {
		s.serving.Go(func() { s.serve(c) })
	}
	s.mu.Unlock()
	if closing {
		s.serve(c)
	}
}

// Close waits until answers that are under way have been sent, at most for timeout, and
// closes all connections. The listener is to be closed before.
func (s *Server) Close(timeout time.Duration) {
	s.mu.Lock()
	s.closing = true
	for c := range s.conns {
		_ = c.CloseRead() // ends the wait for requests
	}
	s.mu.Unlock()
	s.events.Close()
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(timeout):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// admit registers a connection, or returns why there is to be none.
func (s *Server) admit(c *net.UnixConn) *Error {
	if err := checkPeer(c, []int{0, os.Geteuid()}); err != nil {
		return &Error{Code: CodeDenied, Message: err.Error()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return ErrEnding
	case len(s.conns) >= maxConnections:
		return &Error{Code: CodeBusy, Message: fmt.Sprintf("%d clients are connected already", maxConnections)}
	}
	s.conns[c] = struct{}{}
	return nil
}

func (s *Server) serve(c *net.UnixConn) {
	defer c.Close()
	if err := s.admit(c); err != nil {
		_ = send(c, Response{Error: err})
		return
	}
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	for lines := bufio.NewReaderSize(c, maxRequest); ; {
		_ = c.SetReadDeadline(time.Now().Add(idleTimeout))
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			_ = send(c, Response{Error: badRequest(fmt.Errorf("more than %d bytes in one line", maxRequest))})
			return
		}
		if err != nil {
			return // an unfinished request gets no answer
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		r, req := Response{}, Request{}
		if err := decode(line, &req); err != nil {
			r.Error = badRequest(err)
		} else if req.Version != Version {
			r.Error = &Error{Code: CodeVersion, Message: fmt.Sprintf("version %d of the protocol: this daemon has %d", req.Version, Version)}
		} else if req.Method == MethodEvents {
			s.sendEvents(c)
			return
		} else if req.Method == MethodDrops {
			s.sendDrops(c, req)
			return
		} else if r.Result, err = s.answer(req); err != nil {
			r.Error = toError(err)
		}
		if send(c, r) != nil {
			return
		}
	}
}

// answer carries out a request, and returns the result as JSON.
func (s *Server) answer(req Request) (json.RawMessage, error) {
	var result any = struct{}{}
	var err error
	switch req.Method {
	case MethodAdd:
		var p TunnelParams
		if err = params(req, &p); err == nil {
			if p.Name != "" {
				return nil, badRequest(errors.New("params.name is for change: the name of a new tunnel is params.tunnel.name"))
			}
			var a Added
			a.Name, err = s.handler.Add(p.Tunnel)
			result = a
		}
	case MethodChange:
		var p TunnelParams
		if err = params(req, &p); err == nil {
			err = s.handler.Change(p.Name, p.Tunnel)
		}
	case MethodDelete:
		var p NameParams
		if err = params(req, &p); err == nil {
			err = s.handler.Delete(p.Name)
		}
	case MethodList:
		var p ListParams
		if err = params(req, &p); err == nil {
			result = Listed{s.handler.List(p.Counters)}
		}
	case MethodStatus:
		var p NameParams
		if err = params(req, &p); err == nil {
			result, err = s.handler.Status(p.Name)
		}
	default:
		return nil, &Error{Code: CodeMethod, Message: fmt.Sprintf("unknown method %q", req.Method)}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(result)
}

// sendEvents sends events until the client or the daemon ends.
func (s *Server) sendEvents(c *net.UnixConn) {
	events, cancel := s.events.subscribe()
	defer cancel()
	if send(c, Response{Result: json.RawMessage("{}")}) != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		awaitEnd(c)
		close(gone)
	}()
	for {
		select {
		case <-gone:
			return
		case e, ok := <-events:
			if !ok || send(c, Response{Event: e}) != nil {
				return
			}
		}
	}
}

// awaitEnd returns when the client sends no more, or the daemon ends.
func awaitEnd(c *net.UnixConn) {
	_ = c.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, io.LimitReader(c, maxRequest))
}

// params decodes the params of a request; none are all their defaults.
func params(req Request, p any) error {
	if req.Params == nil {
		return nil
	}
	if err := decode(req.Params, p); err != nil {
		return badRequest(fmt.Errorf("params: %w", err))
	}
	return nil
}

// decode decodes just one value, without unknown keys.
func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}

func badRequest(err error) *Error { return &Error{Code: CodeBadRequest, Message: err.Error()} }

// send sends one line.
func send(c *net.UnixConn, r Response) error {
	r.Version = Version
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = c.Write(append(line, '\n'))
	return err
}
