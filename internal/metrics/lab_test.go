package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// served is where the tests have their metrics served.
const served = "127.0.0.1:9747"

// lab is two hosts on one cable, of which b has one tunnel with a.
type lab struct {
	t      *testing.T
	a, b   *netlab.Host
	file   string          // configuration of a
	daemon *netlab.Process // of a
	peer   *netlab.Process // of b
	log    *labtest.Output // of daemon
	client *http.Client    // on a
}

// ofTunnel is the table of a tunnel of a configuration between two hosts of 192.168.6.0/24, whose number n is in
// its name and in its inner addresses.
func ofTunnel(n, local, remote int, more string) string {
	return fmt.Sprintf("[tunnel.tun%[1]d]\nlocal = \"192.168.6.%[2]d\"\nremote = \"192.168.6.%[3]d\"\naddress = \"10.0.%[1]d.1\"\npeer = \"10.0.%[1]d.2\"\n%[4]s\n", n, local, remote, more)
}

// newLab returns a lab whose host a runs nothing yet. b is the other end of its first tunnel.
func newLab(t *testing.T) *lab {
	t.Helper()
	labtest.Need(t, "root", "tun", "ip")
	nets := labtest.New(t)
	l := &lab{t: t, file: filepath.Join(t.TempDir(), "goipip.toml")}
	var errs [2]error
	l.a, errs[0] = nets.Host("a")
	l.b, errs[1] = nets.Host("b")
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(nets.Veth(l.a, "eth0", l.b, "eth0"), l.a.AddAddr("eth0", "192.168.6.1/24"),
		l.b.AddAddr("eth0", "192.168.6.2/24"), l.b.AddAddr("eth0", "192.168.6.3/24")); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = l.a.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	l.client = &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 20 * time.Second}
	t.Cleanup(l.client.CloseIdleConnections)
	return l
}

// start starts goipip on a host, and returns when it has logged a line.
func (l *lab) start(h *netlab.Host, says string, args ...string) (*netlab.Process, *labtest.Output) {
	l.t.Helper()
	return l.startBy(h.Start, says, args...)
}

// startBy does the same in a way of its own.
func (l *lab) startBy(start func(*exec.Cmd) (*netlab.Process, error), says string, args ...string) (*netlab.Process, *labtest.Output) {
	l.t.Helper()
	log := &labtest.Output{}
	cmd := exec.Command(labtest.BuildGoipip(l.t), args...)
	cmd.Stderr = log
	p, err := start(cmd)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("goipip %s: %s", strings.Join(args, " "), log)
		}
	})
	labtest.WaitFor(l.t, says, func() bool { return strings.Contains(log.String(), says) })
	return p, log
}

// run runs a configuration on a, which serves its metrics, and the other end of tun1 on b.
func (l *lab) run(config string, args ...string) {
	l.t.Helper()
	l.write(config)
	l.peer, _ = l.start(l.b, "tunnel is up", "-local", "192.168.6.2", "-remote", "192.168.6.1", "-name", "tun1", "-address", "10.0.1.2", "-peer", "10.0.1.1")
	l.daemon, l.log = l.start(l.a, "metrics are served", append([]string{"run", "--config", l.file}, args...)...)
}

func (l *lab) write(config string) {
	l.t.Helper()
	if err := os.WriteFile(l.file, []byte(config), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// reload has the daemon read a configuration.
func (l *lab) reload(config string) {
	l.t.Helper()
	l.write(config)
	if err := l.daemon.Signal(syscall.SIGHUP); err != nil {
		l.t.Fatal(err)
	}
}

// ip runs ip(8) on a.
func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := l.a.Output("ip", args...); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
}

// get asks the daemon for a page.
func (l *lab) get(path string) (status int, body string) {
	l.t.Helper()
	resp, err := l.client.Get("http://" + served + path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// says waits until a page has a status and a text.
func (l *lab) says(path string, status int, text string) {
	l.t.Helper()
	var gotStatus int
	var got string
	labtest.WaitFor(l.t, fmt.Sprintf("%s to say %d %q", path, status, text), func() bool {
		gotStatus, got = l.get(path)
		return gotStatus == status && got == text
	})
}

// exposition is what a scrape returns.
type exposition struct {
	text   string
	values map[string]float64  // by what stands in front of the value, as name{label="value"}
	labels map[string][]string // their names, in order, by the name of the metric
}

var labelName = regexp.MustCompile(`(\w+)="[^"]*"`)

// scrape scrapes the metrics.
func (l *lab) scrape() exposition {
	l.t.Helper()
	status, text := l.get("/metrics")
	if status != http.StatusOK {
		l.t.Fatalf("status %d: %s", status, text)
	}
	e := exposition{text, map[string]float64{}, map[string][]string{}}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			l.t.Fatal(err)
		}
		series := line[:at]
		e.values[series] = v
		name, labels, _ := strings.Cut(series, "{")
		e.labels[name] = nil
		for _, label := range labelName.FindAllStringSubmatch(labels, -1) {
			e.labels[name] = append(e.labels[name], label[1])
		}
	}
	return e
}

// has waits until a series has a value.
func (l *lab) has(series string, want float64) {
	l.t.Helper()
	labtest.WaitFor(l.t, fmt.Sprintf("%s to be %v", series, want), func() bool {
		got, ok := l.scrape().values[series]
		return ok && got == want
	})
}

// lacks waits until there is no series of that name.
func (l *lab) lacks(series string) {
	l.t.Helper()
	labtest.WaitFor(l.t, "no "+series, func() bool {
		_, ok := l.scrape().values[series]
		return !ok
	})
}
