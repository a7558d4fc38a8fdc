package control_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab/labtest"
	"goipip/internal/tunnel"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// book is a handler that only keeps the settings of tunnels.
type book struct {
	mu      sync.Mutex
	tunnels map[string]tunnel.Config
	ending  bool
	drops   *drops // of the tunnel called dropping
}

func newBook() *book { return &book{tunnels: map[string]tunnel.Config{}} }

func (b *book) Add(cfg tunnel.Config) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return "", control.ErrEnding
	}
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	if _, ok := b.tunnels[cfg.Name]; ok {
		return "", fmt.Errorf("tunnel %q: %w", cfg.Name, syscall.EEXIST)
	}
	b.tunnels[cfg.Name] = cfg
	return cfg.Name, nil
}

func (b *book) Change(name string, cfg tunnel.Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.tunnels[name]; !ok {
		return control.ErrNotFound
	}
	b.tunnels[name] = cfg
	return nil
}

func (b *book) Delete(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.tunnels[name]; !ok {
		return control.ErrNotFound
	}
	delete(b.tunnels, name)
	return nil
}

func (b *book) List(bool) (list []control.Tunnel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, cfg := range b.tunnels {
		list = append(list, control.Tunnel{Config: cfg})
	}
	return list
}

func (b *book) Status(string) (control.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return control.Status{Process: control.Process{PID: len(b.tunnels)}}, nil
}

// serve serves h at a path of its own until the test ends.
func serve(t *testing.T, h control.Handler, events *control.Events) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	serveAt(t, path, h, events)
	return path
}

func serveAt(t *testing.T, path string, h control.Handler, events *control.Events) (stop func()) {
	t.Helper()
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(h, events)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	stop = sync.OnceFunc(func() {
		l.Close()
		s.Close(time.Second)
		l.Release()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, path string) *control.Client {
	t.Helper()
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// settings are those of a valid tunnel.
func settings(name string) tunnel.Config {
	return tunnel.Config{
		Name:      name,
		Local:     netip.MustParseAddr("192.0.2.1"),
		Remote:    netip.MustParseAddr("192.0.2.2"),
		Address:   netip.MustParsePrefix("10.0.0.1/24"),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.1/24")},
		MTU:       1400, TTL: 64, TOS: 0x10, InheritTOS: true, Device: "eth0", Mark: 7,
		Transmit: tunnel.TransmitPacket, Queues: 2, Down: true, AnyProtocol: true,
	}
}

// Settings arrive as they were sent, and what the handler says comes back.
func TestCalls(t *testing.T) {
	b := newBook()
	c := dial(t, serve(t, b, control.NewEvents()))
	want := settings("tun01")
	var added control.Added
	if err := c.Call(control.MethodAdd, control.TunnelParams{Tunnel: want}, &added); err != nil || added.Name != "tun01" {
		t.Fatalf("add: %v, %v", added, err)
	}
	var list control.Listed
	if err := c.Call(control.MethodList, control.ListParams{}, &list); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", list.Tunnels[0].Config), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("the settings\n%s arrive as\n%s", want, got)
	}
	err := c.Call(control.MethodAdd, control.TunnelParams{Tunnel: want}, nil)
	if !errors.Is(err, syscall.EEXIST) || err.Error() != `tunnel "tun01": file exists` {
		t.Errorf("add once more: %v", err)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno != syscall.EEXIST {
		t.Errorf("add once more: errno %v", errno)
	}
	invalid := want
	invalid.MTU = 1
	var e *control.Error
	if err := c.Call(control.MethodAdd, control.TunnelParams{Tunnel: invalid}, nil); !errors.As(err, &e) ||
		e.Code != control.CodeInvalid || e.Errno != syscall.EINVAL || e.Message != "mtu 1: must be 68 to 65515" {
		t.Errorf("add what is invalid: %#v", err)
	}
	want.TTL = 5
	if err := c.Call(control.MethodChange, control.TunnelParams{Name: "tun01", Tunnel: want}, nil); err != nil {
		t.Error(err)
	}
	if b.tunnels["tun01"].TTL != 5 {
		t.Error("change changes nothing")
	}
	if err := c.Call(control.MethodDelete, control.NameParams{Name: "tun01"}, nil); err != nil {
		t.Error(err)
	}
	if err := c.Call(control.MethodDelete, control.NameParams{Name: "tun01"}, nil); !errors.Is(err, control.ErrNotFound) || !errors.Is(err, syscall.ENODEV) {
		t.Errorf("delete once more: %v", err)
	}
	var s control.Status
	if err := c.Call(control.MethodStatus, control.NameParams{}, &s); err != nil || s.Process.PID != 0 {
		t.Errorf("status: %v, %v", s, err)
	}
}

// A bad request gets an error that says what is wrong, and the connection goes on.
func TestBadRequests(t *testing.T) {
	b := newBook()
	path := serve(t, b, control.NewEvents())
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for _, c := range []struct {
		line string
		code control.Code
		text string
	}{
		{`hello`, control.CodeBadRequest, "invalid character"},
		{`[]`, control.CodeBadRequest, "cannot unmarshal array"},
		{`{"version":1,"method":"list"} {}`, control.CodeBadRequest, "more than one value"},
		{`{"version":1,"method":"list","frobnicate":1}`, control.CodeBadRequest, `unknown field "frobnicate"`},
		{`{"version":1,"method":"list","params":[]}`, control.CodeBadRequest, "params: "},
		{`{"version":1,"method":"add","params":{"tunnel":{"locale":"192.0.2.1"}}}`, control.CodeBadRequest, `unknown field "locale"`},
		{`{"version":1,"method":"add","params":{"tunnel":{"local":"192.0.2.256"}}}`, control.CodeBadRequest, "192.0.2.256"},
		{`{"version":1,"method":"add","params":{"tunnel":{"ttl":256}}}`, control.CodeBadRequest, "256"},
		{`{"version":1,"method":"add","params":{"tunnel":{"tx":"loud"}}}`, control.CodeBadRequest, "must be auto or raw or packet"},
		{`{"version":1,"method":"add","params":{"name":"x","tunnel":{}}}`, control.CodeBadRequest, "params.tunnel.name"},
		{`{"version":1,"method":"add"}`, control.CodeInvalid, "remote is missing"},
		{`{"version":2,"method":"list"}`, control.CodeVersion, "version 2"},
		{`{"method":"list"}`, control.CodeVersion, "version 0"},
		{`{"version":1,"method":"frobnicate"}`, control.CodeMethod, `"frobnicate"`},
		{`{"version":1,"method":"delete","params":{"name":"tun01"}}`, control.CodeNotFound, "no such tunnel"},
		{`{"version":1,"method":"delete","params":` + strings.Repeat(`{"name":`, 20000) + `1` + strings.Repeat(`}`, 20000) + `}`, control.CodeBadRequest, "depth"},
		{"\x00\xff", control.CodeBadRequest, "invalid character"},
	} {
		if _, err := io.WriteString(conn, c.line+"\n"); err != nil {
			t.Fatal(err)
		}
		r := readResponse(t, answers)
		if r.Error == nil || r.Error.Code != c.code || !strings.Contains(r.Error.Message, c.text) || r.Result != nil || r.Version != control.Version {
			t.Errorf("%.80s: %+v, want code %s and %q", c.line, r.Error, c.code, c.text)
		}
	}
	if _, err := io.WriteString(conn, "\n \n{\"version\":1,\"method\":\"list\"}\n"); err != nil {
		t.Fatal(err)
	}
	if r := readResponse(t, answers); r.Error != nil {
		t.Errorf("a good request after the bad ones: %v", r.Error)
	}
	if len(b.tunnels) != 0 {
		t.Errorf("tunnels %v", b.tunnels)
	}
}

func readResponse(t *testing.T, answers *bufio.Reader) (r control.Response) {
	t.Helper()
	line, err := answers.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return r
}

// A line without end gets an error and is not read to its end.
func TestTooLong(t *testing.T) {
	path := serve(t, newBook(), control.NewEvents())
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range 1000 { // until the server closes
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}()
	if r := readResponse(t, bufio.NewReader(conn)); r.Error == nil || r.Error.Code != control.CodeBadRequest {
		t.Errorf("%+v", r)
	}
	labtest.Within(t, "the end of the connection", sent)
}

// The socket is its user's, and a second daemon is refused until the first one has ended.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	if _, err := control.Dial(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Dial without a daemon: %v", err)
	}
	stop := serveAt(t, path, newBook(), control.NewEvents())
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%s: %v, %v", path, info.Mode(), err)
	}
	if _, err := control.Listen(path); !errors.Is(err, control.ErrRuns) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("Listen beside a daemon: %v", err)
	}
	dial(t, path).Close()
	stop()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	// What a killed daemon leaves: a socket that nobody listens on, and an unlocked file.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(path+".lock", []byte("4000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Dial(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Dial after a daemon was killed: %v", err)
	}
	serveAt(t, path, newBook(), control.NewEvents())
	dial(t, path)

	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := control.Listen(long); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("Listen at a long path: %v", err)
	}
}

// Only root and the daemon's own user get an answer, even where the file's mode would let
// others in.
func TestPeerCredentials(t *testing.T) {
	labtest.Need(t, "root")
	b := newBook()
	path := serve(t, b, control.NewEvents())
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil && dir == path {
			t.Fatal(err)
		}
		if filepath.Base(filepath.Dir(dir)) == "tmp" {
			break
		}
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user id
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			done <- errno
			return
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil {
			err = errors.New(line)
		}
		done <- err
	}()
	if err := <-done; !strings.Contains(err.Error(), `"code":"denied"`) || !strings.Contains(err.Error(), "65534") {
		t.Errorf("another user gets %v", err)
	}
}

// There is room for many clients, and a clear answer to one too many.
func TestBusy(t *testing.T) {
	path := serve(t, newBook(), control.NewEvents())
	var clients []*control.Client
	for range 128 {
		c := dial(t, path)
		if err := c.Call(control.MethodList, control.ListParams{}, nil); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	var e *control.Error
	if err := dial(t, path).Call(control.MethodList, control.ListParams{}, nil); !errors.As(err, &e) || e.Code != control.CodeBusy {
		t.Errorf("one client too many: %v", err)
	}
	clients[0].Close()
	labtest.WaitFor(t, "room for another client", func() bool {
		return dial(t, path).Call(control.MethodList, control.ListParams{}, nil) == nil
	})
}

// Events are the log from info on; a client that does not read misses some, and disturbs
// nobody.
func TestEvents(t *testing.T) {
	events := control.NewEvents()
	path := serve(t, newBook(), events)
	log := slog.New(events.Handler()).With("tunnel", "tun01")
	log.Info("to nobody")

	idle, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	fmt.Fprintln(idle, `{"version":1,"method":"events"}`)

	c := dial(t, path)
	got := make(chan string, 10)
	go c.Events(func(e json.RawMessage) error {
		got <- string(e)
		return nil
	})
	labtest.WaitFor(t, "the client to follow", func() bool {
		log.Debug("no event")
		log.Warn("route lost", "device", "eth0")
		return len(got) > 0
	})
	var e map[string]any
	if err := json.Unmarshal([]byte(<-got), &e); err != nil || e["msg"] != "route lost" || e["level"] != "WARN" || e["tunnel"] != "tun01" || e["device"] != "eth0" || e["time"] == nil {
		t.Errorf("event %v, %v", e, err)
	}
	for range 100_000 {
		log.Info("a flood")
	}
}

// Of a hundred processes that add a tunnel at once, one starts the daemon.
func TestAddTunnel_StartsOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	b := newBook()
	var started atomic.Int32
	start := func() error {
		started.Add(1)
		time.Sleep(10 * time.Millisecond)
		serveAt(t, path, b, control.NewEvents())
		return nil
	}
	var adding sync.WaitGroup
	for i := range 100 {
		adding.Go(func() {
			cfg := settings(fmt.Sprint("tun", i))
			if name, err := control.AddTunnel(path, cfg, start); err != nil || name != cfg.Name {
				t.Errorf("%s: %q, %v", cfg.Name, name, err)
			}
		})
	}
	adding.Wait()
	if started.Load() != 1 || len(b.tunnels) != 100 {
		t.Errorf("%d daemons, %d tunnels", started.Load(), len(b.tunnels))
	}
	failed := errors.New("no daemon")
	if _, err := control.AddTunnel(filepath.Join(t.TempDir(), "x"), settings("x"), func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("the error of the start is lost: %v", err)
	}
}

// A daemon that is about to exit is waited for, and another one started.
func TestAddTunnel_AfterTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	old, next := newBook(), newBook()
	old.ending = true
	stop := serveAt(t, path, old, control.NewEvents())
	time.AfterFunc(20*time.Millisecond, stop)
	_, err := control.AddTunnel(path, settings("tun01"), func() error {
		serveAt(t, path, next, control.NewEvents())
		return nil
	})
	if err != nil || len(old.tunnels) != 0 || len(next.tunnels) != 1 {
		t.Errorf("%v: %v, %v", err, old.tunnels, next.tunnels)
	}
}

// Processes that take no further tunnels are found beside the daemon, and what killed ones
// left is removed.
func TestDialAll(t *testing.T) {
	labtest.Need(t, "root")
	host, err := labtest.New(t).Host("host")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	err = host.Do(func() error {
		if clients, err := control.DialAll(""); err != nil || len(clients) != 0 {
			t.Errorf("without processes: %v, %v", clients, err)
		}
		for i, listen := range []func(string) (*control.Listener, error){control.ListenBeside, control.Listen, control.ListenBeside} {
			l, err := listen("")
			if err != nil {
				return err
			}
			dirs = append(dirs, filepath.Dir(l.Path()))
			b := newBook()
			for n := range i {
				b.tunnels[fmt.Sprint(n)] = tunnel.Config{}
			}
			s := control.NewServer(b, control.NewEvents())
			go s.Serve(l)
			t.Cleanup(func() {
				l.Close()
				s.Close(time.Second)
				l.Release()
			})
		}
		left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dirs[0], "control-left"), Net: "unix"})
		if err != nil {
			return err
		}
		left.SetUnlinkOnClose(false)
		left.Close()
		clients, err := control.DialAll("")
		if err != nil {
			return err
		}
		var tunnels []int
		for _, c := range clients {
			var s control.Status
			if err := c.Call(control.MethodStatus, control.NameParams{}, &s); err != nil {
				t.Error(err)
			}
			tunnels = append(tunnels, s.Process.PID)
			c.Close()
		}
		if len(tunnels) == 0 || tunnels[0] != 1 {
			t.Errorf("the daemon is not first: %v", tunnels)
		}
		slices.Sort(tunnels)
		if !slices.Equal(tunnels, []int{0, 1, 2}) {
			t.Errorf("found the processes %v", tunnels)
		}
		if _, err := os.Stat(filepath.Join(dirs[0], "control-left")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what a killed process left is there: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzRequest sends lines to a server: each gets one answer in one line.
func FuzzRequest(f *testing.F) {
	for _, line := range []string{
		`{"version":1,"method":"list"}`,
		`{"version":1,"method":"add","params":{"tunnel":{"name":"tun01","local":"192.0.2.1","remote":"192.0.2.2","queues":1}}}`,
		`{"version":1,"method":"change","params":{"name":"tun01","tunnel":{"routes":[{"to":"0.0.0.0/0","metric":-1}]}}}`,
		`{"version":1,"method":"status","params":null}`,
	} {
		f.Add([]byte(line))
	}
	path := filepath.Join(f.TempDir(), "control")
	l, err := control.Listen(path)
	if err != nil {
		f.Fatal(err)
	}
	s := control.NewServer(newBook(), control.NewEvents())
	go s.Serve(l)
	f.Cleanup(func() {
		l.Close()
		s.Close(time.Second)
		l.Release()
	})
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(line) > 100_000 || strings.ContainsAny(string(line), "\n") || strings.Contains(string(line), control.MethodEvents) || len(strings.TrimSpace(string(line))) == 0 {
			t.Skip()
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write(append(line, '\n')); err != nil {
			t.Fatal(err)
		}
		r := readResponse(t, bufio.NewReader(conn))
		if (r.Error == nil) == (r.Result == nil) || r.Version != control.Version {
			t.Errorf("%q: %+v", line, r)
		}
	})
}
