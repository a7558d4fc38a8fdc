package netlab_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// loggedPackets are so many that the log lines about them, which are limited, fill any buffer on the way to a reader.
const loggedPackets = 300

// sendLogged sends packets from ns02 about each of which ns01 may log a line: ECT outside, not-ECT inside (R5).
func (l *tunnelLab) sendLogged(t *testing.T, edits ...edit) {
	t.Helper()
	edits = append(edits, func(outer, _ *layers.IPv4) { outer.TOS = 2 })
	var packets [][]byte
	for id := range loggedPackets {
		packets = append(packets, craft(t, id+1, edits...))
	}
	send(t, l.ns02, packets...)
}

// startLoggingTo starts goipip with its standard error at w, which the test closes once goipip has it.
func (e end) startLoggingTo(t *testing.T, w *os.File, attr *syscall.SysProcAttr, options ...string) *background {
	t.Helper()
	return e.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) {
		defer w.Close()
		cmd.Stderr, cmd.SysProcAttr = w, attr
		return e.host.Start(cmd)
	}, options...)
}

// readUntil reads from r until text has come.
func readUntil(t *testing.T, r *os.File, text string) string {
	t.Helper()
	var got bytes.Buffer
	arrived := make(chan error, 1)
	go func() {
		for buf := make([]byte, 4096); !strings.Contains(got.String(), text); {
			n, err := r.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				arrived <- err
				return
			}
		}
		arrived <- nil
	}()
	if err := labtest.Within(t, "the log to say "+text, arrived); err != nil {
		t.Fatalf("the log ends before %q: %v\n%s", text, err, &got)
	}
	return got.String()
}

// fillPipe writes to a pipe until it takes no more, through a description of its own: that of its user stays as it is.
func fillPipe(t *testing.T, w *os.File) {
	t.Helper()
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for size := 4096; size > 0; size /= 2 {
		for err = nil; err == nil; _, err = unix.Write(fd, make([]byte, size)) {
		}
		if err != unix.EAGAIN {
			t.Fatalf("fill a pipe: %v", err)
		}
	}
}

// endsInTime fails the test unless the fastest of a few attempts ends within a second: the machine may be busy.
func endsInTime(t *testing.T, attempt func(t *testing.T) time.Duration) {
	t.Helper()
	const limit, attempts = time.Second, 3
	fastest := time.Hour
	for range attempts {
		if fastest = min(fastest, attempt(t)); fastest <= limit || t.Failed() {
			break
		}
	}
	if fastest > limit {
		t.Errorf("goipip takes %v at least to end after SIGTERM, want at most %v", fastest, limit)
	}
}

func TestHazard1_LogReaderGone(t *testing.T) {
	t.Parallel()
	endsInTime(t, func(t *testing.T) time.Duration {
		l := newTunnelLab(t)
		l.end02.start(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		tun01 := l.end01.startLoggingTo(t, w, nil)
		readUntil(t, r, "tunnel is up")
		r.Close()
		l.sendLogged(t)
		l.pingBothWays(t)
		return tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
	})
}

// signalMask returns a mask of signals of a process, such as SigIgn (proc(5), /proc/PID/status).
func signalMask(t *testing.T, pid int, name string) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\n"+name+":\t")
	hex, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask
}

// An ignored signal would be ignored in children too, one that is caught is not (execve(2)).
func TestHazard1_SIGPIPECaught(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01 := l.end01.start(t)
	const sigpipe = 1 << (unix.SIGPIPE - 1)
	if caught, ignored := signalMask(t, tun01.Pid(), "SigCgt"), signalMask(t, tun01.Pid(), "SigIgn"); caught&sigpipe == 0 || ignored&sigpipe != 0 {
		t.Errorf("SIGPIPE is not caught (%#x), or ignored (%#x)", caught, ignored)
	}
}

// hangingPipe returns a pipe, both ends of it, and what fills it, so that the next write blocks.
func hangingPipe(t *testing.T) (r, w *os.File, fill func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	return r, w, func() { fillPipe(t, own) }
}

func TestHazard1_LogReaderHangs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		atStart bool
		options string
	}{
		"later":    {false, ""},
		"JSON":     {false, "--log-format json --log-level debug"},
		"at start": {true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endsInTime(t, func(t *testing.T) time.Duration {
				l := newTunnelLab(t)
				l.end02.start(t)
				r, w, fill := hangingPipe(t)
				if c.atStart {
					fill()
				}
				tun01 := l.end01.startLoggingTo(t, w, nil, strings.Fields(c.options)...)
				if !c.atStart {
					readUntil(t, r, "tunnel is up")
					fill()
				}
				l.sendLogged(t)
				l.pingBothWays(t)
				return tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
			})
		})
	}
}

// goipip tunnel add returns although its standard error hangs.
func TestHazard1_TunnelAddHangs(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	_, w, fill := hangingPipe(t)
	fill()
	cmd := goipipCommand(t, "tunnel", "add", l.end01.dev, "mode", "ipip", "local", l.end01.local, "remote", l.end01.remote)
	add := startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) {
		defer w.Close()
		cmd.Stderr = w
		return l.ns01.Start(cmd)
	}, cmd)
	if err := add.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	if err := l.ns01.DeleteLink(l.end01.dev); err != nil {
		t.Error(err)
	}
}

// syslogd is a system log of a test.
type syslogd struct {
	dir  string
	conn *net.UnixConn
}

func newSyslogd(t *testing.T) *syslogd {
	t.Helper()
	dir := t.TempDir()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &syslogd{dir, conn}
}

// sees changes a command so that it finds this system log where log/syslog looks for one, in a mount namespace of its own.
func (s *syslogd) sees(cmd *exec.Cmd) *exec.Cmd {
	const script = `if [ -e /dev/log ]; then mount --bind "$0/log" /dev/log; else mount --bind "$0" /var/run; fi && exec "$@"`
	in := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, s.dir}, cmd.Args...)...)
	in.Env = cmd.Env
	return in
}

// next returns the severity (syslog(3)) and the text of the next message.
func (s *syslogd) next(t *testing.T) (severity int, text string) {
	t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(answerTime))
	buf := make([]byte, 4096)
	n, err := s.conn.Read(buf)
	if err != nil {
		t.Fatalf("read the system log: %v", err)
	}
	priority, text, ok := strings.Cut(strings.TrimPrefix(string(buf[:n]), "<"), ">")
	p, err := strconv.Atoi(priority)
	if !ok || err != nil {
		t.Fatalf("a message of the system log: %q", buf[:n])
	}
	return p & 7, text
}

// fill sends messages until the system log has no room for more, as when it hangs.
func (s *syslogd) fill(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for err == nil {
		err = unix.Sendto(fd, []byte("<30>fill"), 0, &unix.SockaddrUnix{Name: filepath.Join(s.dir, "log")})
	}
	if err != unix.EAGAIN {
		t.Fatalf("fill the system log: %v", err)
	}
}

// addInBackground types `goipip tunnel add` for e, which logs to s, and returns the process in the background.
func (e end) addInBackground(t *testing.T, s *syslogd) *os.Process {
	t.Helper()
	t.Cleanup(func() {
		if hasLink(e.host, e.dev) {
			e.host.DeleteLink(e.dev)
		}
	})
	cmd := s.sees(goipipCommand(t, "tunnel", "add", e.dev, "mode", "ipip", "remote", e.remote, "local", e.local))
	add := start(t, e.host, cmd)
	if err := add.Wait(labtest.Context(t)); err != nil {
		t.Fatalf("%v: %v", err, &add.out)
	}
	pids := goipips(t, e.host)
	if len(pids) != 1 {
		t.Fatalf("processes %v, want one", pids)
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := e.host.SetUp(e.dev); err != nil {
		t.Fatal(err)
	}
	e.address(t)
	return p
}

func TestHazard1_SyslogHangs(t *testing.T) {
	t.Parallel()
	endsInTime(t, func(t *testing.T) time.Duration {
		l := newTunnelLab(t)
		l.end02.start(t)
		s := newSyslogd(t)
		p := l.end01.addInBackground(t, s)
		t.Cleanup(func() { p.Kill() })
		s.fill(t)
		l.sendLogged(t)
		l.pingBothWays(t)
		begin := time.Now()
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		labtest.WaitFor(t, "the end of the background process", func() bool { return len(goipips(t, l.ns01)) == 0 })
		return time.Since(begin)
	})
}

// The process in the background logs to the system log, each line with its severity, and with the tunnel's name.
func TestHazard20_Syslog(t *testing.T) {
	t.Parallel()
	const warning, info = 4, 6
	l := newTunnelLab(t)
	l.end02.start(t)
	s := newSyslogd(t)
	p := l.end01.addInBackground(t, s)
	expect := func(severity int, words ...string) {
		t.Helper()
		got, text := s.next(t)
		if got != severity {
			t.Errorf("severity %d, want %d: %s", got, severity, text)
		}
		mentions(t, "the system log", text, append(words, "goipip["+strconv.Itoa(p.Pid)+"]", "tunnel=tun01")...)
		if strings.Contains(text, "level=") || strings.Contains(text, " time=") {
			t.Errorf("the system log has its own time and severity, and gets %q", text)
		}
	}
	expect(info, "tunnel is up")
	if err := p.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	expect(info, "counters", "tx.packets=0")
	if err := l.ns01.AddRoute("192.168.8.101/32", "tun01"); err != nil {
		t.Fatal(err)
	}
	expect(warning, "leads into the tunnel itself")
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expect(info, "tunnel is down", "why=signal")
}

// What ends the process in the background is in the system log: its standard error leads nowhere.
func TestHazard24_FailureInBackground(t *testing.T) {
	t.Parallel()
	const severity, info = 3, 6
	l := newTunnelLab(t)
	s := newSyslogd(t)
	cmd := s.sees(goipipCommand(t, "tunnel", "add", l.end01.dev, "mode", "ipip", "local", l.end01.local, "remote", l.end01.remote))
	refused := netlab.RefusedCall{Number: unix.SYS_RECVMMSG, Unless: bpf.JumpLessThan, Value: 0, Errno: unix.EINVAL}
	add := startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) { return l.ns01.StartRefusing(cmd, refused) }, cmd)
	if err := add.Wait(labtest.Context(t)); err != nil {
		t.Errorf("%v, although the link was up", err)
	}
	got, text := s.next(t)
	for got == info { // that the tunnel is up
		got, text = s.next(t)
	}
	if got != severity {
		t.Errorf("severity %d, want %d: %s", got, severity, text)
	}
	mentions(t, "the system log", text, "recvmmsg: invalid argument", "tunnel=tun01")
	labtest.WaitFor(t, "the end of the background process", func() bool { return len(goipips(t, l.ns01)) == 0 })
}

// Every line about a tunnel says which.
func TestHazard20_LinesNameTheirTunnel(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end01.remote = "192.168.77.1" // where no route leads
	tun01 := l.end01.start(t, "--log-level", "debug")
	tun01.warns(t, "192.168.77.1")
	l.sendLogged(t, outerFrom(l.end01.remote))
	tun01.out.waitFor(t, "non-ECT inner packet")
	tun01.counts(t)
	tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
	<-tun01.ended
	for line := range strings.Lines(tun01.out.String()) {
		if !strings.Contains(line, " tunnel=tun01 ") {
			t.Errorf("a line without the tunnel's name: %s", line)
		}
	}
}

// openTerminal opens a pseudo-terminal (pty(7)).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// The end of the terminal is SIGHUP, and an error for whoever writes there. The tunnel goes on.
func TestHazard23_TerminalCloses(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end02.start(t)
	master, slave := openTerminal(t)
	tun01 := l.end01.startLoggingTo(t, slave, &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 2})
	readUntil(t, master, "tunnel is up")
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	l.sendLogged(t)
	l.pingBothWays(t)
	tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
}

func TestHazard23_SIGHUP(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	tun01, _ := l.start(t)
	if err := tun01.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	tun01.out.waitFor(t, "level=INFO msg=\"SIGHUP ignored: there is no configuration file\" tunnel=tun01")
	l.pingBothWays(t)
	tun01.exits(t, l.end01, func() error { return tun01.Signal(unix.SIGTERM) })
}
