//go:build linux

package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"goipip/internal/daemon/control"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// computer is a host on which a person types commands.
type computer struct {
	*netlab.Host
	dir string // /run/goipip/NAMESPACE
}

func newComputer(t *testing.T) computer {
	t.Helper()
	labtest.Need(t, "root", "tun", "ip")
	host, err := labtest.New(t).Host("host")
	if err != nil {
		t.Fatal(err)
	}
	return computerOn(t, host)
}

func computerOn(t *testing.T, host *netlab.Host) computer {
	t.Helper()
	c := computer{host, ""}
	inode := strings.TrimSpace(c.types(t, "stat -Lc %i /proc/self/ns/net"))
	c.dir = filepath.Join("/run/goipip", inode)
	// A killed process in another namespace, whose inode this one has now, may have left files.
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range c.processes(t) { // of a test that failed
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return c
}

// types types a command line in which goipip is the program under test. It must succeed.
func (c computer) types(t *testing.T, line string) string {
	t.Helper()
	r := c.tries(t, line)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("%s: status %d: %s%s", line, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// tries types a command line that may fail.
func (c computer) tries(t *testing.T, line string) result {
	t.Helper()
	cmd := exec.CommandContext(labtest.Context(t), "sh", "-c", `goipip() { "$GOIPIP" "$@"; }; `+line)
	cmd.Env = append(os.Environ(), "GOIPIP="+labtest.BuildGoipip(t))
	var r result
	if err := c.Do(func() error { r = runCommand(t, cmd); return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

// processes returns the ids of the processes of goipip here.
func (c computer) processes(t *testing.T) (pids []int) {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range exes {
		dir := filepath.Dir(exe)
		program, _ := os.Readlink(exe)
		var ns syscall.Stat_t
		if program == labtest.BuildGoipip(t) && syscall.Stat(filepath.Join(dir, "ns/net"), &ns) == nil &&
			strconv.FormatUint(ns.Ino, 10) == filepath.Base(c.dir) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// daemon returns the id of the one process of goipip here.
func (c computer) daemon(t *testing.T) int {
	t.Helper()
	pids := c.processes(t)
	if len(pids) != 1 {
		t.Fatalf("processes %v, want one", pids)
	}
	return pids[0]
}

// isEmpty waits until nothing of goipip is left.
func (c computer) isEmpty(t *testing.T) {
	t.Helper()
	labtest.WaitFor(t, "the end of goipip", func() bool { return len(c.processes(t)) == 0 })
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		entries, _ := os.ReadDir(c.dir)
		t.Errorf("%s is left: %v, %v", c.dir, entries, err)
	}
	if links := c.types(t, "ip -br link"); strings.Count(links, "\n") != 1 {
		t.Errorf("links are left: %s", links)
	}
}

// starts starts a command in a shell's background, and waits until it has said something.
func (c computer) starts(t *testing.T, says string, args ...string) *netlab.Process {
	t.Helper()
	cmd := exec.Command(labtest.BuildGoipip(t), args...)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = write
	p, err := c.Start(cmd)
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	go func() {
		defer read.Close()
		say := sync.OnceFunc(func() { close(said) })
		for lines := bufio.NewScanner(read); lines.Scan(); {
			if strings.Contains(lines.Text(), says) {
				say()
			}
		}
	}()
	labtest.Within(t, says, said)
	return p
}

const add = "goipip tunnel add %s mode ipip local 192.0.2.1 remote 198.51.100.%d"

// The first add starts a daemon, however many come at once, and its last tunnel's end stops it.
func TestDaemon_StartsOnce(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	const tunnels = 100
	var adding sync.WaitGroup
	for i := range tunnels {
		adding.Go(func() { c.types(t, fmt.Sprintf(add, fmt.Sprint("tun", i), i+1)) })
	}
	adding.Wait()
	pid := c.daemon(t)
	if n := strings.Count(c.types(t, "goipip tunnel show"), "\n"); n != tunnels {
		t.Errorf("%d tunnels, want %d", n, tunnels)
	}
	// It is in a session of its own, with nothing open of the terminal.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	if session := strings.Fields(after)[3]; session != strconv.Itoa(pid) {
		t.Errorf("the daemon %d is in the session %s", pid, session)
	}
	for fd := range 3 {
		if file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || file != os.DevNull {
			t.Errorf("descriptor %d of the daemon is %s, %v", fd, file, err)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGPIPE} {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Error(err)
		}
	}
	for i := range tunnels {
		if i%2 == 0 {
			c.types(t, fmt.Sprint("goipip tunnel del tun", i))
		} else {
			c.types(t, fmt.Sprint("ip link delete tun", i))
		}
	}
	c.isEmpty(t)
}

// A mistake leaves nothing.
func TestDaemon_Mistake(t *testing.T) {
	c := newComputer(t)
	for _, line := range []string{
		fmt.Sprintf(add, "lo", 1),
		"goipip tunnel add tun01 mode ipip local 192.0.2.1",
		"goipip tunnel add tun01 mode ipip local 192.0.2.1 remote 198.51.100.1 dev eth7",
		"goipip tunnel add tun01 mode ipip local 192.0.2.1 remote 198.51.100.1 ttl 300",
		"goipip tunnel change tun01 mode ipip local 192.0.2.1 remote 198.51.100.1",
		"goipip tunnel del tun01",
	} {
		if r := c.tries(t, line); r.status == 0 || r.stdout != "" || strings.Count(strings.TrimSpace(r.stderr), "\n") != 0 {
			t.Errorf("%s: %+v", line, r)
		}
		c.isEmpty(t)
	}
}

// A daemon that was killed leaves no tunnel and is replaced.
func TestDaemon_Killed(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	killed := c.daemon(t)
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "its end", func() bool { return len(c.processes(t)) == 0 })
	if out := c.types(t, "goipip tunnel show"); out != "" {
		t.Errorf("without a daemon there is %s", out)
	}
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	if pid := c.daemon(t); pid == killed {
		t.Error("the daemon lives")
	}
	c.types(t, "goipip tunnel del tun01")
	c.isEmpty(t)
}

// Tunnels come and go, and a daemon that ends is in nobody's way.
func TestDaemon_Cycles(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	for range 40 {
		c.types(t, fmt.Sprintf(add, "tun01", 1)+" && goipip tunnel del tun01")
	}
	c.isEmpty(t)
}

// A tunnel whose link has another name by now leaves the former one to others.
func TestDaemon_Renamed(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	for i := range 3 {
		c.types(t, fmt.Sprintf(add, "tun01", i+1)+fmt.Sprintf(" && ip link set tun01 name other%d", i))
	}
	for i := range 3 {
		name := fmt.Sprintf("other%d", i)
		if out := c.types(t, "goipip tunnel show "+name); !strings.HasPrefix(out, name+": ") {
			t.Errorf("tunnel show %s prints %s", name, out)
		}
		c.types(t, "goipip tunnel del "+name)
	}
	c.isEmpty(t)
}

// Each network namespace has its own.
func TestDaemon_TwoNamespaces(t *testing.T) {
	t.Parallel()
	a, b := newComputer(t), newComputer(t)
	for _, c := range []computer{a, b} {
		c.types(t, fmt.Sprintf(add, "tun01", 1))
	}
	if a.daemon(t) == b.daemon(t) {
		t.Error("both have the same daemon")
	}
	a.types(t, "goipip tunnel del tun01")
	a.isEmpty(t)
	if out := b.types(t, "goipip tunnel show"); !strings.HasPrefix(out, "tun01: ") {
		t.Errorf("the other namespace has %s", out)
	}
	b.types(t, "goipip tunnel del tun01")
	b.isEmpty(t)
}

// tunnel add joins goipip run, which keeps what was added when it reads its file again, and
// stays when it has no tunnel.
func TestDaemon_JoinsRun(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	file := filepath.Join(t.TempDir(), "goipip.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const tun01 = "[tunnel.tun01]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n"
	write(tun01)
	p := c.starts(t, "tunnel is up", "run", "--config", file)
	c.types(t, fmt.Sprintf(add, "tun02", 2))
	if pid := c.daemon(t); pid != p.Pid() {
		t.Errorf("the daemon is %d, and not goipip run, %d", pid, p.Pid())
	}
	r := c.tries(t, "goipip run --config "+file)
	if want := fmt.Sprintf("goipip: another goipip daemon runs in this network namespace (process id %d)", p.Pid()); r.status != 1 || !strings.HasPrefix(r.stderr, want) {
		t.Errorf("a second goipip run: %+v, want %s", r, want)
	}
	names := func() (names []string) {
		for line := range strings.Lines(c.types(t, "goipip tunnel show")) {
			name, _, _ := strings.Cut(line, ":")
			names = append(names, name)
		}
		return names
	}
	if got := names(); !slices.Equal(got, []string{"tun01", "tun02"}) {
		t.Errorf("tunnels %v", got)
	}
	write("[tunnel.tun03]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.3\"\n")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	labtest.WaitFor(t, "tun03 in the place of tun01, and tun02 as before", func() bool {
		return slices.Equal(names(), []string{"tun02", "tun03"})
	})
	c.types(t, "goipip tunnel del tun02; ip link delete tun03")
	labtest.WaitFor(t, "no tunnel", func() bool { return names() == nil })
	c.types(t, fmt.Sprintf(add, "tun02", 2))
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.isEmpty(t)
}

// A process with one tunnel takes no others, and its tunnel is one like the others.
func TestDaemon_BesideForeground(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	p := c.starts(t, "tunnel is up", "-name", "fore", "-local", "192.0.2.1", "-remote", "192.0.2.2")
	c.types(t, fmt.Sprintf(add, "back", 1))
	if pids := c.processes(t); len(pids) != 2 {
		t.Errorf("processes %v, want two", pids)
	}
	const want = "fore: ip/ip remote 192.0.2.2 local 192.0.2.1 ttl inherit\nback: ip/ip remote 198.51.100.1 local 192.0.2.1 ttl inherit\n"
	if out := c.types(t, "goipip tunnel show"); out != want {
		t.Errorf("goipip tunnel show:\n%swant\n%s", out, want)
	}
	c.types(t, "goipip tunnel change fore ttl 64")
	if out := c.types(t, "goipip tunnel show fore"); !strings.HasSuffix(out, " ttl 64\n") {
		t.Errorf("after a change: %s", out)
	}
	c.types(t, "goipip tunnel del fore")
	if err := p.Wait(labtest.Context(t)); err != nil {
		t.Errorf("the process of a deleted tunnel ends with %v", err)
	}
	c.types(t, "goipip tunnel del back")
	c.isEmpty(t)
}

// With --control, a daemon is where it was told to be, and others do not see it.
func TestDaemon_ControlPath(t *testing.T) {
	c := newComputer(t)
	path := filepath.Join(t.TempDir(), "socket")
	c.types(t, "goipip --control "+path+" tunnel add tun01 mode ipip local 192.0.2.1 remote 198.51.100.1")
	if out := c.types(t, "goipip tunnel show"); out != "" {
		t.Errorf("without --control: %s", out)
	}
	if out := c.types(t, "goipip -control="+path+" tunnel show"); !strings.HasPrefix(out, "tun01: ") {
		t.Errorf("with --control: %s", out)
	}
	c.types(t, "goipip --control="+path+" tunnel del tun01")
	c.isEmpty(t)
}

// Other users can neither see nor change tunnels.
func TestDaemon_OtherUser(t *testing.T) {
	c := newComputer(t)
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	for _, words := range []string{"show", "del tun01", "add tun02 mode ipip local 192.0.2.1 remote 198.51.100.2"} {
		r := c.tries(t, `cp "$GOIPIP" /tmp/goipip-$$ && chmod 755 /tmp/goipip-$$ && setpriv --reuid 65534 --clear-groups /tmp/goipip-$$ tunnel `+words+`; s=$?; rm /tmp/goipip-$$; exit $s`)
		if r.status != 1 || r.stdout != "" || !strings.Contains(r.stderr, "permission denied") {
			t.Errorf("tunnel %s as another user: %+v", words, r)
		}
	}
	c.types(t, "goipip tunnel del tun01")
	c.isEmpty(t)
}

// Ten thousand random requests neither crash the daemon nor leave anything behind.
func TestDaemon_RandomRequests(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	c.types(t, fmt.Sprintf(add, "keep", 1))
	pid := c.daemon(t)
	requests := 10_000
	if testing.Short() {
		requests /= 10
	}
	random := rand.New(rand.NewPCG(1, 2))
	conn, err := net.Dial("unix", filepath.Join(c.dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close() }()
	answers := bufio.NewReader(conn)
	codes := map[control.Code]int{}
	for i := range requests {
		line := randomRequest(random)
		if _, err := io.WriteString(conn, line+"\n"); err != nil {
			t.Fatalf("request %d, %s: %v", i, line, err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer, err := answers.ReadBytes('\n')
		var r control.Response
		if err != nil || json.Unmarshal(answer, &r) != nil || (r.Error == nil) == (r.Result == nil) {
			t.Fatalf("request %d, %s: answer %q, %v", i, line, answer, err)
		}
		code := control.Code("done")
		if r.Error != nil {
			code = r.Error.Code
		}
		codes[code]++
	}
	t.Log(codes)
	for _, code := range []control.Code{"done", control.CodeBadRequest, control.CodeInvalid, control.CodeNotFound, control.CodeFailed} {
		if codes[code] == 0 {
			t.Errorf("no request had the answer %s: the test tests too little", code)
		}
	}
	if now := c.daemon(t); now != pid {
		t.Errorf("the daemon is %d now, and was %d", now, pid)
	}
	for line := range strings.Lines(c.types(t, "goipip tunnel show")) {
		name, _, _ := strings.Cut(line, ":")
		c.types(t, "goipip tunnel del '"+name+"'")
	}
	c.isEmpty(t)
}

// Two hundred random command lines neither crash anything nor leave anything behind.
func TestDaemon_RandomWords(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	statuses := map[int]int{}
	for range 200 {
		words := []string{pick("", "", "", "-s", "-j", "-o -d", "-6", "-n nosuch"), pick("tunnel", "t", "tunl", "tunnel", "link")}
		words = append(words, pick("add", "a", "change", "c", "del", "show", "frob", "add", "add"), pick("a", "b", "c", "'x y'", "a/b", "ipip0", "", "name d"))
		if random.IntN(4) > 0 {
			words = append(words, "mode ipip local 192.0.2.1 remote", pick("192.0.2.2", "192.0.2.3", "192.0.2.4"))
		}
		for range random.IntN(3) {
			words = append(words, pick("mode ipip", "mode gre", "mode", "remote 192.0.2.2", "remote 192.0.2.3", "remote x", "local 192.0.2.1", "local any", "local",
				"ttl 64", "ttl inherit", "ttl 256", "tos EF", "tos inherit/10", "tos zz", "nopmtudisc", "pmtudisc", "dev lo", "dev nosuch", "key 7", "type ipip", "fwmark 7", "help"))
		}
		line := "goipip " + strings.Join(words, " ")
		r := c.tries(t, line)
		statuses[r.status]++
		if (r.status == 0) != (r.stderr == "") || r.status != 0 && r.stdout != "" || strings.Contains(r.stderr, "goroutine") || strings.Contains(r.stderr, "DATA RACE") {
			t.Errorf("%s: %+v", line, r)
		}
	}
	t.Log(statuses)
	for _, status := range []int{0, 1, 255} {
		if statuses[status] == 0 {
			t.Errorf("no line had the status %d: the test tests too little", status)
		}
	}
	for line := range strings.Lines(c.types(t, "goipip tunnel show")) {
		name, _, _ := strings.Cut(line, ":")
		c.types(t, "goipip tunnel del '"+name+"'")
	}
	c.isEmpty(t)
}

// randomRequest returns a line that a client could send: a request about a few tunnels, with
// values that are often wrong, and sometimes a damaged one.
func randomRequest(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	setting := func() string {
		return pick(`"ttl":`+pick("0", "64", "255", "256", "-1", `"inherit"`), `"tos":`+pick("0", "16", "1e2", "300"), `"inherit-tos":`+pick("true", "1"),
			`"mtu":`+pick("0", "68", "1400", "65515", "67", "1e9"), `"nopmtudisc":`+pick("true", "false"), `"dev":`+pick(`""`, `"lo"`, `"nosuch"`, `"a/b"`),
			`"fwmark":`+pick("0", "7", "4294967295", "4294967296"), `"tx":`+pick(`"auto"`, `"raw"`, `"packet"`, `"x"`), `"queues":`+pick("0", "1", "2", "-3", "1000"),
			`"address":`+pick(`"10.0.0.1/24"`, `"::1/64"`, `"10.0.0.1"`), `"peer":"10.0.0.2"`, `"addresses":[`+pick("", `"10.0.1.1/24"`, `"10.0.1.1/24","10.0.1.1/24"`)+`]`,
			`"routes":[`+pick("", `{"to":"198.18.0.0/24"}`, `{"to":"198.18.0.1/24"}`, `{"to":"::/0"}`, `{"to":"198.18.0.0/24","metric":-1}`)+`]`,
			`"down":`+pick("true", "false"), `"any":true`, `"no-offload":`+pick("true", "false"), `"relay-icmp":true`, `"nosuch":1`)
	}
	name := func() string {
		return `"` + pick("a", "b", "c", "t%d", "", "a-name-too-long-by-far", "x/y", `\u0000`) + `"`
	}
	tunnel := func() string {
		parts := []string{
			`"name":` + name(), `"local":` + pick(`"192.0.2.1"`, `"192.0.2.2"`, `"::1"`, `""`),
			`"remote":` + pick(`"192.0.2.3"`, `"192.0.2.4"`, `"192.0.2.5"`, `"0.0.0.0"`, `"224.0.0.1"`),
		}
		if r.IntN(2) == 0 {
			parts = append(parts, setting())
		}
		return `{` + strings.Join(parts, ",") + `}`
	}
	method := pick("add", "change", "delete", "delete", "list", "status", "nosuch")
	params := map[string]string{
		"add": `{"tunnel":` + tunnel() + `}`, "change": `{"name":` + name() + `,"tunnel":` + tunnel() + `}`,
		"list": `{"counters":` + pick("true", "false", "7") + `}`,
	}[method]
	if params == "" {
		params = `{"name":` + name() + `}`
	}
	line := fmt.Sprintf(`{"version":%s,"method":%q,"params":%s}`, pick("1", "1", "1", "1", "1", "1", "1", "2"), method, params)
	if r.IntN(10) == 0 { // damaged
		b := []byte(line)
		for range 1 + r.IntN(3) {
			b[r.IntN(len(b))] = byte(r.IntN(256))
		}
		line = strings.ReplaceAll(string(b), "\n", " ")
	}
	return line
}

// goipip show finds the daemon, and what it has found out of a tunnel.
func TestDaemon_Show(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	r := c.tries(t, "goipip show")
	if r.status != 0 || r.stdout != "" || !strings.Contains(r.stderr, "goipip tunnel add") {
		t.Errorf("without tunnels: %+v", r)
	}
	c.types(t, fmt.Sprintf(add, "tun01", 1))
	out := c.types(t, "goipip show")
	for _, want := range []string{"tun01: down\n", "the local address is not on this host", "192.0.2.1 → 198.51.100.1", "goipip tunnel add"} {
		if !strings.Contains(out, want) {
			t.Errorf("goipip show does not show %q:\n%s", want, out)
		}
	}
	c.types(t, fmt.Sprintf(add, "tun02", 2)+" && ip link set tun02 up")
	if out := c.types(t, "goipip show"); !strings.Contains(out, "\ntun02  no path  192.0.2.1 → 198.51.100.2") {
		t.Errorf("two tunnels:\n%s", out)
	}
	for _, command := range []string{"show", "show --json", "tunnel show", "--help", "--version"} {
		if r := c.tries(t, "goipip "+command+" >/dev/full"); r.status != 1 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("goipip %s >/dev/full: %+v", command, r)
		}
	}
	var statuses []control.Status
	if err := json.Unmarshal([]byte(c.types(t, "goipip show -json tun01")), &statuses); err != nil {
		t.Fatal(err)
	}
	if len(statuses) != 1 || statuses[0].Process.PID != c.daemon(t) || statuses[0].Process.Role != control.RoleBackground ||
		len(statuses[0].Tunnels) != 1 || statuses[0].Tunnels[0].Config.Name != "tun01" || statuses[0].Tunnels[0].Up {
		t.Errorf("as JSON: %+v", statuses)
	}
	for line, want := range map[string]string{
		"show ''": "\ntun02\t192.0.2.1 → 198.51.100.2\n", "tunnel del ''": "tun01\ntun02\n", "tunnel ''": "change\tChange a tunnel while packets pass\n", "tunnel add x ''": "remote\n",
	} {
		if out := c.types(t, "goipip __complete "+line+" 2>/dev/null"); !strings.Contains(out, want) {
			t.Errorf("completion of goipip %s: %q, want %q", line, out, want)
		}
	}
	c.types(t, "goipip tunnel del tun01; goipip tunnel del tun02")
	c.isEmpty(t)
}
