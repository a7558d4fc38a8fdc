package metrics_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/metrics"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/stats"
)

// unanswered is how long to wait for an answer that will not come.
const unanswered = 20 * time.Millisecond

// ping sends pings through tunnel n.
func (l *lab) ping(n, count int, timeout time.Duration) (answers int) {
	l.t.Helper()
	r, err := l.a.Ping(labtest.Context(l.t), netip.AddrFrom4([4]byte{10, 0, byte(n), 2}), netlab.PingOptions{Count: count, Timeout: timeout})
	if err != nil {
		l.t.Fatal(err)
	}
	return r.Received
}

// A daemon's tunnels are in its metrics with what they did, whatever becomes of their links, and
// the daemon is ready when all of them work.
func TestTunnels(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "promtool")
	l := newLab(t)
	config := "metrics = \":9747\"\n" + ofTunnel(1, 1, 2, `fast-path = "auto"`) + ofTunnel(2, 9, 4, "") + ofTunnel(3, 1, 3, "")
	begin := time.Now().Truncate(time.Second)
	l.run(config)
	const troubled = "tun2: the local address is not on this host: no packets pass until it is (ip address add)\n"
	l.says("/healthz", 200, "alive\n")
	l.says("/readyz", 503, troubled)

	e := l.scrape()
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(e.text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v: %s", err, out)
	}
	for name, labels := range e.labels {
		if want := metrics.Labels(name); strings.HasPrefix(name, "goipip_") && !slices.Equal(labels, want) {
			t.Errorf("%s has the labels %q, want %q", name, labels, want)
		}
	}
	for _, name := range metrics.Names() {
		if _, ok := e.labels[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "go_goroutines"} {
		if _, ok := e.labels[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
	drops := 0
	for series := range e.values {
		if strings.HasPrefix(series, "goipip_tunnel_dropped_packets_total") {
			drops++
		}
	}
	for r := range stats.NumReasons {
		for direction, counter := range map[string]stats.LinkCounter{"receive": r.RX(), "transmit": r.TX()} {
			for n := range 3 {
				series := fmt.Sprintf(`goipip_tunnel_dropped_packets_total{direction=%q,reason="%v",tunnel="tun%d"}`, direction, r, n+1)
				if v, ok := e.values[series]; ok != (r.Dropped() && counter != "") || v != 0 {
					t.Errorf("%s: %v, %v", series, v, ok)
				} else if ok {
					drops--
				}
			}
		}
	}
	if drops != 0 {
		t.Errorf("%d dropped for other reasons", drops)
	}

	const pings, size = 5, 84
	if got := l.ping(1, pings, 0); got != pings {
		t.Fatalf("%d answers", got)
	}
	for _, direction := range []string{"receive", "transmit"} {
		l.has(fmt.Sprintf(`goipip_tunnel_%s_packets_total{tunnel="tun1"}`, direction), pings)
		l.has(fmt.Sprintf(`goipip_tunnel_%s_bytes_total{tunnel="tun1"}`, direction), pings*size)
	}
	last := l.scrape().values[`goipip_tunnel_peer_last_receive_timestamp_seconds{tunnel="tun1"}`]
	if now := float64(time.Now().Unix()); last < float64(begin.Unix()) || last > now+1 {
		t.Errorf("the last packet came at %v, now is %v", last, now)
	}
	l.has(`goipip_tunnel_peer_last_receive_timestamp_seconds{tunnel="tun2"}`, 0)
	l.has(`goipip_tunnel_mtu_bytes{tunnel="tun1"}`, 1480)
	l.has(`goipip_tunnel_path_mtu_bytes{tunnel="tun1"}`, 1500)
	l.lacks(`goipip_tunnel_path_mtu_bytes{tunnel="tun2"}`)
	l.has(`goipip_tunnel_info{device="eth0",link="tun1",local="192.168.6.1",remote="192.168.6.2",tunnel="tun1"}`, 1)
	l.ping(2, 3, unanswered)
	l.has(`goipip_tunnel_dropped_packets_total{direction="transmit",reason="no_route",tunnel="tun2"}`, 3)
	l.ping(3, 1, unanswered) // b has no tunnel there, and its kernel says so
	l.has(`goipip_tunnel_icmp_errors_total{tunnel="tun3"}`, 1)
	l.has(`goipip_tunnel_icmp_errors_total{tunnel="tun1"}`, 0)
	labtest.WaitFor(t, "packets to leave in one way", func() bool {
		e := l.scrape()
		path := func(p string) float64 {
			return e.values[fmt.Sprintf(`goipip_tunnel_transmit_path{path=%q,tunnel="tun1"}`, p)]
		}
		return path("packet")+path("fast") == 1 && path("raw") == 0
	})

	l.ip("addr", "add", "192.168.6.9/32", "dev", "eth0")
	l.says("/readyz", 200, "ready\n")

	// A link that is away, down, under another name, or gone.
	l.ip("link", "set", "tun2", "netns", strconv.Itoa(l.peer.Pid()))
	l.has(`goipip_tunnel_up{tunnel="tun2"}`, 1)
	l.says("/readyz", 200, "ready\n")
	l.ip("link", "set", "tun3", "down")
	l.has(`goipip_tunnel_up{tunnel="tun3"}`, 0)
	l.says("/readyz", 503, "tun3: the link is down\n")
	l.ip("link", "set", "tun3", "name", "other")
	l.has(`goipip_tunnel_info{device="eth0",link="other",local="192.168.6.1",remote="192.168.6.3",tunnel="tun3"}`, 1)
	l.ip("link", "delete", "other")
	l.says("/readyz", 503, "tun3: does not run: the log says why\n")
	l.has(`goipip_tunnel_up{tunnel="tun3"}`, 0)
	l.lacks(`goipip_tunnel_mtu_bytes{tunnel="tun3"}`)

	// Reloads.
	first := l.scrape().values["goipip_config_last_reload_success_timestamp_seconds"]
	l.has("goipip_config_last_reload_successful", 1)
	l.reload(config)
	l.has(`goipip_config_reloads_total{result="success"}`, 1)
	l.says("/readyz", 200, "ready\n")
	l.reload(config + "mtu = 1\n")
	l.has(`goipip_config_reloads_total{result="failure"}`, 1)
	l.has("goipip_config_last_reload_successful", 0)
	e = l.scrape()
	if last := e.values["goipip_config_last_reload_success_timestamp_seconds"]; last <= first || e.values[`goipip_config_reloads_total{result="success"}`] != 1 {
		t.Errorf("the last success was at %v, after %v", last, first)
	}
	l.says("/readyz", 200, "ready\n")

	if err := l.daemon.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := l.daemon.Wait(labtest.Context(t)); err != nil {
		t.Error(err)
	}
	if resp, err := l.client.Get("http://" + served + "/healthz"); err == nil {
		resp.Body.Close()
		t.Errorf("%s after the end", resp.Status)
	}
}

// Scrapes go on, and are whole, while tunnels come and go.
func TestComeAndGo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const tunnels = 60
	one, all := ofTunnel(1, 1, 2, ""), ""
	for n := range tunnels {
		all += ofTunnel(n+1, 1, n+2, "queues = 1")
	}
	l.run(one, "--metrics", served)
	between := 0 // scrapes of which the tunnels were neither few nor all
	for round := 0; between < 5 || round < 2; round++ {
		if round == 20 {
			t.Fatalf("%d scrapes during a reload", between)
		}
		config, want := all, tunnels
		if round%2 == 1 {
			config, want = one, 1
		}
		l.reload(config)
		labtest.WaitFor(t, "the reload", func() bool {
			e := l.scrape()
			n := strings.Count(e.text, "\ngoipip_tunnel_mtu_bytes{")
			if n > 1 && n < tunnels {
				between++
			}
			if got := strings.Count(e.text, "\ngoipip_tunnel_transmit_packets_total{"); got != n {
				t.Errorf("%d tunnels have an MTU, and %d packets", n, got)
			}
			return n == want && e.values[`goipip_config_reloads_total{result="success"}`] == float64(round+1)
		})
	}
}

// One tunnel in the foreground has metrics too, in the namespace that it was started in, and none
// of a configuration.
func TestForeground(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	args := []string{"-local", "192.168.6.1", "-remote", "192.168.6.2", "-name", "tun1", "-metrics", ":9747"}
	l.daemon, l.log = l.start(l.a, "tunnel is up", args...)
	l.says("/readyz", 200, "ready\n")
	l.has(`goipip_tunnel_up{tunnel="tun1"}`, 1)
	for series := range l.scrape().values {
		if strings.HasPrefix(series, "goipip_config_") {
			t.Errorf("%s without a configuration", series)
		}
	}

	// A second one does not get the port.
	args[3], args[5] = "192.168.6.3", "tun2"
	second := exec.Command(labtest.BuildGoipip(t), args...)
	var out labtest.Output
	second.Stderr = &out
	p, err := l.a.Start(second)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(labtest.Context(t))
	const want = "goipip: metrics at 127.0.0.1:9747: address already in use: choose another port, or end the program that has this one (ss -ltnp shows it)\n"
	if err == nil || out.String() != want {
		t.Errorf("%v: %s, want %s", err, &out, want)
	}
	l.says("/readyz", 200, "ready\n")
}

// A process one of whose loops hangs says so.
func TestHealth(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(ofTunnel(1, 1, 2, ""))
	// The loop tries again, for ever.
	refused := netlab.RefusedCall{Number: unix.SYS_RECVMMSG, Unless: bpf.JumpLessThan, Value: 0, Errno: unix.EINTR}
	start := func(cmd *exec.Cmd) (*netlab.Process, error) { return l.a.StartRefusing(cmd, refused) }
	l.daemon, l.log = l.startBy(start, "tunnel is up", "run", "--config", l.file, "--metrics", served)
	l.says("/healthz", 503, "a loop that carries packets hangs: restart goipip\n")
	l.daemon.Signal(unix.SIGKILL) // which nothing else ends
	l.daemon.Wait(labtest.Context(t))
}

// A process whose loops go on is healthy again.
func TestHealth_Again(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.daemon, l.log = l.start(l.a, "tunnel is up", "-local", "192.168.6.1", "-remote", "192.168.6.2", "-metrics", served)
	l.says("/healthz", 200, "alive\n")
	runtime.LockOSThread() // a thread that traces is the only one that may let go
	defer runtime.UnlockOSThread()
	var loops []int
	labtest.WaitFor(t, "loops to wait for packets", func() bool {
		loops = threadsInPoll(t, l.daemon.Pid())
		return len(loops) >= 3
	})
	for _, tid := range loops {
		if err := unix.PtraceSeize(tid); err != nil {
			t.Fatal(err)
		}
		if err := unix.PtraceInterrupt(tid); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.says("/healthz", 503, "a loop that carries packets hangs: restart goipip\n")
	for _, tid := range loops {
		if err := unix.PtraceDetach(tid); err != nil {
			t.Fatal(err)
		}
	}
	l.says("/healthz", 200, "alive\n")
}

// threadsInPoll returns the threads of a process that are in poll(2), as its loops are.
func threadsInPoll(t *testing.T, pid int) (tids []int) {
	t.Helper()
	calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range calls {
		call, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		// amd64 has poll beside ppoll, by this number.
		if number, _, _ := strings.Cut(string(call), " "); number != "7" && number != fmt.Sprint(unix.SYS_PPOLL) {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		tids = append(tids, tid)
	}
	return tids
}

// A client that is slow does not stay, and many of them do not take more than their share.
func TestClients(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.daemon, l.log = l.start(l.a, "tunnel is up", "-local", "192.168.6.1", "-remote", "192.168.6.2", "-metrics", served)
	var slow []net.Conn
	const most = 16
	for range most {
		if err := l.a.Do(func() error {
			c, err := net.Dial("tcp", served)
			slow = append(slow, c)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range slow {
		defer c.Close()
		if _, err := c.Write([]byte("GET /metrics HTTP/1.1\r\nHost: ")); err != nil {
			t.Fatal(err)
		}
	}
	l.says("/healthz", 200, "alive\n") // when there is room
	closed := 0
	for _, patience := range []time.Duration{unanswered, 30 * time.Second} {
		for i, c := range slow {
			if c == nil {
				continue
			}
			c.SetReadDeadline(time.Now().Add(patience))
			n, err := c.Read(make([]byte, 1))
			if errors.Is(err, io.EOF) {
				slow[i] = nil
				closed++
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a request without an end is answered with %d bytes, %v", n, err)
			}
		}
		if closed == 0 {
			t.Fatalf("a client beside %d others is answered", most)
		}
	}
	if closed != most {
		t.Errorf("%d of %d requests without an end were ended", closed, most)
	}
}

// Packets that the link's queue had no room for are counted, although no scrape asks for them.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.run(ofTunnel(1, 1, 2, "queues = 1"), "--metrics", served)
	l.has(`goipip_tunnel_up{tunnel="tun1"}`, 1)
	if err := l.daemon.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "all threads to stop", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", l.daemon.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		stopped := 0
		for _, thread := range threads {
			stat, _ := os.ReadFile(thread)
			if _, state, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(state, "T") {
				stopped++
			}
		}
		return stopped > 0 && stopped == len(threads)
	})
	const room, packets = 4096, 5000
	if err := l.a.Do(func() error {
		c, err := net.Dial("udp", "10.0.1.2:9")
		if err != nil {
			return err
		}
		defer c.Close()
		for range packets {
			_, _ = c.Write([]byte("x")) // which tells of full queues
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.daemon.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.has(`goipip_tunnel_dropped_packets_total{direction="transmit",reason="queue_full",tunnel="tun1"}`, packets-room)
}
