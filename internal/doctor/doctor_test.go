package doctor_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// finding is a result as the program prints it.
type finding struct {
	Check, Tunnel, Status, Saw, Why, Cure string
	Commands                              []string
}

// report is what the program prints with --json.
type report struct {
	Status string
	Checks []finding
}

// of returns the worst finding of a check.
func (r report) of(check string) (worst finding) {
	order := []string{"", "ok", "warning", "failure"}
	for _, f := range r.Checks {
		if f.Check == check && slices.Index(order, f.Status) > slices.Index(order, worst.Status) {
			worst = f
		}
	}
	return worst
}

// wrong returns the checks that are not ok.
func (r report) wrong() (names []string) {
	for _, f := range r.Checks {
		if f.Status != "ok" && !slices.Contains(names, f.Check) {
			names = append(names, f.Check)
		}
	}
	slices.Sort(names)
	return names
}

// site is the laboratory of one test: ns01, where the doctor is called, a router, and ns02.
type site struct {
	ns01, ns02, router *netlab.Host

	goipip string   // the program
	prefix []string // of its command line
	mounts []string // of commands that are to see its mounts

	options []string // of tunnels that start
}

// Ends of the tunnel.
const (
	outer01 = "192.168.6.101"
	outer02 = "192.168.8.101"
)

// wanted are the options of a tunnel that does not run.
var wanted = []string{"-local", outer01, "-remote", outer02}

func newSite(t *testing.T) *site {
	t.Helper()
	labtest.Need(t, "root", "tun", "bpf", "ip", "nft", "iptables-legacy", "ethtool", "setpriv", "setcap", "ping")
	s := &site{goipip: labtest.Build(t, "goipip/cmd/goipip")}
	var err error
	if s.ns01, s.ns02, s.router, err = labtest.New(t).Lab2(); err != nil {
		t.Fatal(err)
	}
	return s
}

// does runs a script on a host.
func (s *site) does(t *testing.T, h *netlab.Host, script string) {
	t.Helper()
	args := append(slices.Clone(s.mounts), "sh", "-ec", script)
	if out, err := h.Output(args[0], args[1:]...); err != nil {
		t.Fatalf("%s: %s: %v: %s", h.Name, script, err, out)
	}
}

// doctor runs goipip doctor on ns01.
func (s *site) doctor(t *testing.T, args ...string) report {
	t.Helper()
	line := slices.Concat(s.mounts, s.prefix, []string{s.goipip, "doctor", "--json"}, args)
	var out, stderr bytes.Buffer
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	p, err := s.ns01.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(labtest.Context(t))
	var r report
	if e := json.Unmarshal(out.Bytes(), &r); e != nil {
		t.Fatalf("%v: %v: %s%s", line, errors.Join(err, e), &out, &stderr)
	}
	var exit *exec.ExitError
	status := 0
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"failure": 1}[r.Status]; status != want {
		t.Errorf("exit status %d, want %d with %s", status, want, r.Status)
	}
	return r
}

// start starts a tunnel on both hosts, or with one name on that.
func (s *site) start(t *testing.T, hosts ...*netlab.Host) {
	t.Helper()
	for _, h := range hosts {
		args := []string{"-name", "tun01", "-local", outer01, "-remote", outer02, "-address", "172.66.1.101", "-peer", "172.66.2.101"}
		if h == s.ns02 {
			args = []string{"-name", "tun02", "-local", outer02, "-remote", outer01, "-address", "172.66.2.101", "-peer", "172.66.1.101"}
		}
		if _, err := h.Start(exec.Command(s.goipip, append(args, s.options...)...)); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		labtest.WaitFor(t, "the tunnel", func() bool {
			out, err := h.Output(s.goipip, "show", "--json")
			return err == nil && strings.Contains(out, `"up": true`)
		})
	}
}

// hidesTUN gives commands a /dev/net of their own, made by a script.
func (s *site) hidesTUN(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", script+"; echo; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ns01.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.mounts = []string{"nsenter", "--mount", "--target", strconv.Itoa(cmd.Process.Pid)}
}

// asNobody is the prefix for a user with some capabilities.
func asNobody(capabilities string) []string {
	p := []string{"setpriv", "--reuid", "65534", "--clear-groups"}
	if capabilities != "" {
		p = append(p, "--inh-caps", capabilities, "--ambient-caps", capabilities)
	}
	return p
}

func without(capabilities string) []string {
	return []string{"setpriv", "--bounding-set", capabilities}
}

// broken is a setup in which something is wrong.
type broken struct {
	name   string
	check  string   // that finds it
	status string   // "warning" or "failure"
	saw    string   // a part of what it sees
	also   []string // checks that find something too
	cured  []string // those of them that the cure mends
	// cure is the command that mends it, or several, each on a line; or text is a part of what to do.
	cure, text string

	setup func(*testing.T, *site)
	on01  string   // what breaks it: commands for ns01
	args  []string // of the doctor; nil for wanted
}

var setups = []broken{
	{
		name: "no TUN device", check: "tun", status: "failure", saw: "no such file or directory",
		setup: func(t *testing.T, s *site) { s.hidesTUN(t, "mount -t tmpfs none /dev/net") },
		cure:  "mkdir -p /dev/net\nmknod -m 666 /dev/net/tun c 10 200", text: "--device /dev/net/tun",
	},
	{
		name: "TUN device of root", check: "tun", status: "failure", saw: "permission denied", also: []string{"bpf"},
		setup: func(t *testing.T, s *site) {
			s.hidesTUN(t, "mount -t tmpfs none /dev/net; mknod -m 600 /dev/net/tun c 10 200")
			s.prefix = asNobody("+net_admin,+net_raw")
		},
		cure: "chmod 666 /dev/net/tun",
	},
	{
		name: "TUN device on nodev", check: "tun", status: "failure", saw: "permission denied",
		setup: func(t *testing.T, s *site) {
			s.hidesTUN(t, "mount -t tmpfs -o nodev none /dev/net; mknod -m 666 /dev/net/tun c 10 200")
		},
		text: "nodev: start the container with --device /dev/net/tun",
	},
	{
		name: "TUN device denied to the control group", check: "tun", status: "failure", saw: "operation not permitted",
		setup: deniesTUN,
		text:  "DeviceAllow=/dev/net/tun",
	},
	{
		name: "no CAP_NET_ADMIN", check: "net-admin", status: "failure", saw: "CAP_NET_ADMIN is missing", also: []string{"bpf", "filter-protocol", "filter-cost"},
		setup: func(_ *testing.T, s *site) { s.prefix = without("-net_admin") },
		text:  "--cap-add NET_ADMIN",
	},
	{
		name: "no CAP_NET_RAW", check: "net-raw", status: "failure", saw: "CAP_NET_RAW is missing",
		setup: func(_ *testing.T, s *site) { s.prefix = without("-net_raw") },
		text:  "--cap-add NET_RAW",
	},
	{
		name: "a user without capabilities", check: "net-raw", status: "failure", saw: "CAP_NET_RAW is missing",
		also:  []string{"net-admin", "filter-protocol", "filter-cost"},
		setup: copyForNobody,
		cure:  "setcap cap_net_admin,cap_net_raw+ep PROGRAM",
	},
	{
		name: "no CAP_BPF", check: "bpf", status: "warning", saw: "no eBPF filter",
		setup: func(_ *testing.T, s *site) { s.prefix = without("-bpf,-sys_admin") },
		text:  "--cap-add BPF",
	},
	{
		name: "no fast path, which is wanted", check: "fast-path", status: "warning", saw: "needs CAP_BPF", also: []string{"bpf"},
		setup: func(_ *testing.T, s *site) { s.prefix = without("-bpf,-sys_admin") },
		args:  append([]string{"-fast-path", "auto"}, wanted...),
		text:  "--fast-path off",
	},
	{
		name: "no fast path, which must be", check: "fast-path", status: "failure", saw: "needs CAP_BPF", also: []string{"bpf"},
		setup: func(_ *testing.T, s *site) { s.prefix = without("-bpf,-sys_admin") },
		args:  append([]string{"-fast-path", "on"}, wanted...),
		text:  "--fast-path off",
	},
	{
		name: "capabilities of another user namespace", check: "net-admin", status: "failure", saw: "does not count in this network namespace",
		also:  []string{"net-raw", "user-namespace", "filter-protocol", "filter-cost"},
		setup: func(_ *testing.T, s *site) { s.prefix = []string{"unshare", "--user", "--map-root-user"} },
		text:  "the user namespace that made the network namespace",
	},
	{
		name: "a user namespace", check: "user-namespace", status: "warning", saw: "rootless container",
		also:  []string{"bpf", "local", "route"},
		setup: func(_ *testing.T, s *site) { s.prefix = []string{"unshare", "--user", "--map-root-user", "--net"} },
		text:  "net.core.rmem_max",
	},
	{
		name: "few file descriptors", check: "descriptors", status: "failure", saw: "raise it to at least",
		setup: func(_ *testing.T, s *site) { s.prefix = []string{"sh", "-c", `ulimit -n 60; exec "$@"`, "sh"} },
		args:  append([]string{"-queues", "4"}, wanted...),
		text:  "LimitNOFILE=",
	},

	{
		name: "nftables accepts 94", check: "filter-protocol", status: "warning", also: []string{"filter-cost"},
		on01: `nft 'table inet f { chain in { type filter hook input priority 0; ip protocol ipip accept; }; }'`,
		saw:  "chain inet f in, rule with handle 2", cure: "nft replace rule inet f in handle 2 ip protocol 4 accept",
	},
	{
		name: "nftables accepts a set with 94", check: "filter-protocol", status: "warning", also: []string{"filter-cost"},
		on01: `nft 'table ip f { chain in { type filter hook input priority 0; ip protocol { tcp, 94 } accept; }; }'`,
		saw:  "chain ip f in, rule with handle", text: "write 4 or ipencap",
	},
	{
		name: "iptables accepts 94", check: "filter-protocol", status: "warning", also: []string{"filter-cost"},
		on01: "iptables-legacy -A INPUT -s 192.168.8.0/24 -p ipip -m comment --comment 'for the tunnel' -j ACCEPT",
		saw:  "chain INPUT of iptables", cure: `iptables-legacy -R INPUT 1 -s 192.168.8.0/24 -p 4 -m comment --comment 'for the tunnel' -j ACCEPT`,
	},
	{
		name: "chains cost the packet socket", check: "filter-cost", status: "warning", saw: "nftables or iptables has a chain",
		on01: `nft 'table ip f { chain in { type filter hook input priority 0; }; }'`, text: "--tx raw",
	},
	{
		name: "nftables' policy drops what comes", check: "filter-input", status: "failure", also: []string{"filter-cost", "probe"}, cured: []string{"probe"},
		setup: func(t *testing.T, s *site) { s.start(t, s.ns02) },
		on01:  `nft 'table inet f { chain in { type filter hook input priority 0; policy drop; iifname lo accept; tcp dport 22 accept; }; }'`,
		args:  append([]string{"-address", "172.66.1.101", "-peer", "172.66.2.101"}, probing...),
		saw:   "chain inet f in drops protocol 4 from 192.168.8.101: policy drop", cure: "nft insert rule inet f in ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables' policy drops what comes from anywhere", check: "filter-input", status: "failure", also: []string{"filter-cost"},
		on01: `nft 'table inet f { chain in { type filter hook input priority 0; policy drop; udp dport 53 accept; }; }'`, args: []string{},
		saw: "chain inet f in drops protocol 4 from anywhere: policy drop", cure: "nft insert rule inet f in ip protocol 4 accept",
	},
	{
		name: "nftables accepts others only", check: "filter-input", status: "failure", also: []string{"filter-cost"},
		on01: `nft 'table inet f {
			set friends { type ipv4_addr; flags interval; elements = { 192.168.7.0/24, 192.168.8.102 }; };
			chain tunnels { ip saddr @friends ip protocol 4 accept; };
			chain in { type filter hook input priority 0; policy drop; iifname vmap { "lo" : accept, "veth01" : jump tunnels }; }; }'`,
		saw: "policy drop", cure: "nft insert rule inet f in ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables accepts replies only", check: "filter-input", status: "warning", also: []string{"filter-cost"},
		on01: `nft 'table inet f { chain in { type filter hook input priority 0; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }; }; }'`,
		saw:  "chain inet f in drops protocol 4", cure: "nft insert rule inet f in ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables limits what comes", check: "filter-input", status: "warning", also: []string{"filter-cost"},
		on01: `nft 'table ip f { chain in { type filter hook prerouting priority 0; ip protocol 4 limit rate over 10/second drop; }; }'`,
		saw:  "chain ip f in drops protocol 4 from 192.168.8.101: rule with handle", cure: "nft insert rule ip f in ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables drops at the device", check: "filter-input", status: "failure",
		on01: `nft 'table netdev f { chain in { type filter hook ingress device "veth01" priority 0; ip protocol 4 drop; }; }'`,
		saw:  "chain netdev f in drops protocol 4", cure: "nft insert rule netdev f in ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables asks for connections too early", check: "filter-input", status: "failure", also: []string{"filter-cost"},
		on01: `nft 'table inet f { chain pre { type filter hook prerouting priority raw; ct state invalid drop; }; }'`,
		saw:  "chain inet f pre drops protocol 4", cure: "nft insert rule inet f pre ip saddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "nftables rejects what leaves", check: "filter-output", status: "failure", also: []string{"filter-cost"},
		on01: `nft 'table ip f { chain out { type filter hook output priority 0; oifname "veth01" goto wan; }; chain wan { ip protocol 1 accept; reject; }; }'`,
		saw:  "chain ip f out drops protocol 4 to 192.168.8.101: rule with handle", cure: "nft insert rule ip f out ip daddr 192.168.8.101 ip protocol 4 accept",
	},
	{
		name: "iptables' policy drops what comes", check: "filter-input", status: "failure", also: []string{"filter-cost"},
		on01: "iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -p tcp -j ACCEPT; iptables-legacy -A INPUT ! -s 192.168.8.0/24 -j ACCEPT",
		saw:  "chain INPUT of iptables, table filter drops protocol 4 from 192.168.8.101: policy drop", cure: "iptables-legacy -I INPUT -s 192.168.8.101 -p 4 -j ACCEPT",
	},
	{
		name: "iptables drops what leaves", check: "filter-output", status: "failure", also: []string{"filter-cost"},
		on01: "iptables-legacy -t mangle -N TUN; iptables-legacy -t mangle -A TUN -o veth+ -j DROP; iptables-legacy -t mangle -A POSTROUTING -p 4 -j TUN",
		saw:  "rule -A TUN -o veth+ -j DROP", cure: "iptables-legacy -t mangle -I POSTROUTING -d 192.168.8.101 -p 4 -j ACCEPT",
	},
	{
		name: "iptables accepts replies only", check: "filter-input", status: "warning", also: []string{"filter-cost"},
		on01: "iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
		saw:  "policy drop", cure: "iptables-legacy -I INPUT -s 192.168.8.101 -p 4 -j ACCEPT",
	},
	{
		name: "iptables-nft accepts replies only", check: "filter-input", status: "warning", also: []string{"filter-cost"},
		on01: "iptables-nft -P INPUT DROP; iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		saw:  "policy drop", cure: "nft insert rule ip filter INPUT ip saddr 192.168.8.101 ip protocol 4 accept",
	},

	{
		name: "no local address", check: "local", status: "failure", saw: "192.168.6.102 is not on this host",
		args: []string{"-local", "192.168.6.102", "-remote", outer02}, cure: "ip addr add 192.168.6.102/32 dev veth01",
	},
	{
		name: "the remote address is this host's", check: "remote", status: "failure", saw: "this host's own",
		args: []string{"-remote", outer01}, text: "give the other end's address",
	},
	{
		name: "the remote address is for all", check: "remote", status: "failure", saw: "broadcast",
		args: []string{"-remote", "192.168.6.255"}, text: "the address of one host",
	},
	{
		name: "no route", check: "route", status: "failure", saw: "network is unreachable",
		on01: "ip route delete 192.168.8.0/24", text: "ip route add 192.168.8.101 via GATEWAY",
	},
	{
		name: "a route into a black hole", check: "route", status: "failure", saw: "is blackhole 192.168.8.101/32",
		on01: "ip route add blackhole 192.168.8.101", cure: "ip route delete blackhole 192.168.8.101/32",
	},
	{
		name: "an unreachable route", check: "route", status: "failure", saw: "is unreachable 192.168.8.96/27",
		on01: "ip route add unreachable 192.168.8.96/27", cure: "ip route delete unreachable 192.168.8.96/27",
	},
	{
		name: "the device is down", check: "route", status: "failure", saw: "veth01 is down",
		on01: "ip link set veth01 down", args: []string{"-local", outer01, "-remote", "192.168.6.1"}, cure: "ip link set veth01 up",
	},
	{
		name: "no device", check: "route", status: "failure", saw: "there is no device eth7",
		args: append([]string{"-dev", "eth7"}, wanted...), text: "--dev",
	},
	{
		name: "the tunnel's route is one to its end", check: "loop", status: "failure", saw: "leads into the tunnel itself",
		args: append([]string{"-address", "192.168.8.7/25"}, wanted...), cure: "ip route replace 192.168.8.101/32 via 192.168.6.1 dev veth01",
	},
	{
		name: "the tunnel's route has been one to its end", check: "loop", status: "failure", saw: "leads into the tunnel itself",
		setup: runs, on01: "ip route add 192.168.8.101 dev tun01", args: []string{}, also: []string{"mtu"},
		cure: "ip route replace 192.168.8.101/32 via 192.168.6.1 dev veth01",
	},
	{
		name: "the next hop is silent", check: "next-hop", status: "failure", saw: "192.168.6.77 does not answer ARP on veth01",
		on01: "ip route replace 192.168.8.0/24 via 192.168.6.77; ip neigh add 192.168.6.77 dev veth01 nud failed", text: "whether that host is up",
	},
	{
		name: "a wanted MTU is too long", check: "mtu", status: "warning", saw: "the tunnel's MTU is 1500, and the path takes 1500 bytes",
		args: append([]string{"-mtu", "1500"}, wanted...), text: "--mtu 1480",
	},
	{
		name: "the link's MTU is too long", check: "mtu", status: "warning", saw: "1400 bytes, 1380 within the tunnel",
		setup: runs, on01: "ip route replace 192.168.8.0/24 via 192.168.6.1 mtu 1400; ip link set tun01 mtu 1480", args: []string{},
		cure: "ip link set tun01 mtu 1380",
	},
	{
		name: "rp_filter is strict on the device", check: "rp-filter", status: "failure", saw: "the route back to 192.168.8.101 is not by veth11",
		setup: func(t *testing.T, s *site) {
			s.secondWay(t)
			s.does(t, s.ns02, "ip route add 192.168.7.0/24 via 192.168.8.1")
			s.options = []string{"-remote", "192.168.7.101"}
			s.start(t, s.ns02)
		},
		on01: "sysctl -qw net.ipv4.conf.veth11.rp_filter=1; ip route add 192.168.8.0/24 via 192.168.7.1 metric 9",
		args: []string{"-local", "192.168.7.101", "-remote", outer02, "-dev", "veth11", "--probe", outer02},
		cure: "sysctl -w net/ipv4/conf/veth11/rp_filter=2", also: []string{"probe"}, cured: []string{"probe"},
	},
	{
		name: "rp_filter is strict everywhere, and a mark chooses the route", check: "rp-filter", status: "warning", saw: "is not by veth11",
		setup: func(t *testing.T, s *site) { s.secondWay(t) },
		on01: "sysctl -qw net.ipv4.conf.all.rp_filter=1; ip route add default via 192.168.7.1 dev veth11 table 7; " +
			"ip rule add fwmark 7 table 7",
		args: append([]string{"-fwmark", "7"}, wanted...), cure: "sysctl -w net/ipv4/conf/veth11/rp_filter=2",
	},
	{
		name: "rp_filter is strict on the link", check: "rp-filter", status: "failure", saw: "the route back to 10.1.0.1 is not by tun01",
		setup: runs, on01: "sysctl -qw net.ipv4.conf.tun01.rp_filter=1; ip route add 10.1.0.0/24 dev tun01 metric 10; ip route add 10.1.0.0/24 via 192.168.6.1",
		args: []string{}, cure: "sysctl -w net/ipv4/conf/tun01/rp_filter=2",
	},
	{
		name: "no forwarding", check: "forwarding", status: "warning", saw: "172.20.0.0/16 is reached by the tunnel, lan has another network",
		setup: runs, on01: "sysctl -qw net.ipv4.ip_forward=0; ip link add lan type veth peer name lan1; ip addr add 172.19.0.1/16 dev lan; ip link set lan up; ip link set lan1 up; ip route add 172.20.0.0/16 dev tun01",
		args: []string{}, cure: "sysctl -w net.ipv4.ip_forward=1",
	},
	{
		name: "no forwarding by nftables", check: "filter-forward", status: "failure", saw: "drops packets between lan and tun01: policy drop", also: []string{"filter-cost"},
		setup: runs, on01: "sysctl -qw net.ipv4.ip_forward=1; ip link add lan type veth peer name lan1; ip addr add 172.19.0.1/16 dev lan; ip link set lan up; ip link set lan1 up; ip route add 172.20.0.0/16 dev tun01; " +
			`nft 'table ip f { chain f { type filter hook forward priority 0; policy drop; iifname "docker0" accept; }; }'`,
		args: []string{}, cure: "nft insert rule ip f f iifname lan oifname tun01 accept\nnft insert rule ip f f iifname tun01 oifname lan accept",
	},
	{
		name: "no forwarding of new connections by iptables", check: "filter-forward", status: "warning", saw: "policy drop", also: []string{"filter-cost"},
		setup: runs, on01: "sysctl -qw net.ipv4.ip_forward=1; ip link add lan type veth peer name lan1; ip addr add 172.19.0.1/16 dev lan; ip link set lan up; ip link set lan1 up; ip route add 172.20.0.0/16 dev tun01; " +
			`iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i tun01 -j ACCEPT; iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT`,
		args: []string{}, cure: "iptables-legacy -I FORWARD -i lan -o tun01 -j ACCEPT",
	},
	{
		name: "another tunnel has the pair", check: "pair", status: "failure", saw: "has the same two ends",
		setup: func(t *testing.T, s *site) { s.start(t, s.ns01) },
		args:  append([]string{"-name", "other"}, wanted...), cure: "ip link delete tun01",
	},
	{
		name: "another link has the name", check: "link", status: "failure", saw: "a link tun01 already, of type veth",
		on01: "ip link add tun01 type veth peer name other",
		args: append([]string{"-name", "tun01"}, wanted...), cure: "ip link delete tun01",
	},
	{
		name: "the link is down", check: "link", status: "failure", saw: "tun01 is down",
		setup: runs, on01: "ip addr add 172.66.1.7/32 dev tun01; ip link set tun01 down", args: []string{}, cure: "ip link set tun01 up",
	},
	{
		name: "no inner address", check: "address", status: "warning", saw: "neither an address nor a route",
		setup: runs, on01: "ip addr flush dev tun01", args: []string{}, text: "ip addr add ADDRESS peer PEER dev tun01",
	},
	{
		name: "the other end is silent", check: "silence", status: "warning", saw: "packets were sent, and none has come",
		setup: func(t *testing.T, s *site) {
			s.does(t, s.ns02, "nft 'table ip f { chain in { type filter hook input priority 0; ip protocol 4 drop; }; }'")
			s.start(t, s.ns01)
			s.does(t, s.ns01, "ping -q -c 1 -W 0.1 172.66.2.101 || true")
		},
		args: []string{}, text: "goipip doctor --probe 192.168.8.101",
	},
	{
		name: "a host name without an address", check: "name", status: "failure", saw: "nosuch.example has no address: ",
		args: []string{"-local", outer01, "-remote", "nosuch.example"}, text: "/etc/resolv.conf",
	},
	{
		name: "a device without an address", check: "name", status: "failure", saw: "veth9 has no address: ",
		on01: "ip link add veth9 type veth",
		args: []string{"-local", "veth9", "-remote", outer02}, text: "give the device an address",
	},
	{
		name: "the device merges datagrams", check: "gro", status: "failure", saw: "veth01 has rx-udp-gro-forwarding on",
		on01: "ethtool -K veth01 gro on rx-udp-gro-forwarding on", cure: "ethtool -K veth01 rx-udp-gro-forwarding off",
	},
	{
		name: "the card below a macvlan merges datagrams", check: "gro", status: "failure", saw: "veth01 has rx-gro-list on",
		on01: "ip link add link veth01 name mac1 type macvlan; ip addr add 192.168.9.1/24 dev mac1; ip link set mac1 up; " +
			"ethtool -K veth01 gro on rx-gro-list on",
		args: []string{"-local", "192.168.9.1", "-remote", "192.168.9.2"}, cure: "ethtool -K veth01 rx-gro-list off",
	},
	{
		name: "the device cuts superpackets", check: "segmentation", status: "warning", saw: "veth01 has tx-ipxip4-segmentation off",
		on01: "ethtool -K veth01 tx-ipxip4-segmentation off",
		args: append([]string{"-fast-path", "auto"}, wanted...), cure: "ethtool -K veth01 tx-ipxip4-segmentation on",
	},

	{
		name: "the other end speaks no ipip", check: "probe", status: "failure", saw: "does not speak ipip (ICMP 3/2)",
		args: probing, text: "goipip tunnel add NAME mode ipip local 192.168.8.101 remote 192.168.6.101",
	},
	{
		name: "the other end has no such tunnel", check: "probe", status: "failure", saw: "speaks ipip, but has no tunnel to 192.168.6.101",
		setup: on02(`nft 'table ip f { chain in { type filter hook input priority 0; ip protocol 4 reject with icmp port-unreachable; }; }'`),
		args:  probing, text: "make the tunnel there",
	},
	{
		name: "a router prohibits protocol 4", check: "probe", status: "failure", saw: "192.168.6.1 drops protocol 4 by a rule (ICMP 3/13)",
		setup: onRouter(`nft 'table ip f { chain f { type filter hook forward priority 0; ip protocol 4 reject with icmp admin-prohibited; }; }'`),
		args:  probing, text: "let protocol 4 from 192.168.6.101 pass at 192.168.6.1",
	},
	{
		name: "a router drops protocol 4", check: "probe", status: "warning", saw: "answers pings, but nothing of protocol 4",
		setup: onRouter(`nft 'table ip f { chain f { type filter hook forward priority 0; ip protocol 4 drop; }; }'`),
		args:  probing, text: "security groups",
	},
	{
		name: "a router does not reach the other end", check: "probe", status: "failure", saw: "192.168.6.1 does not reach 192.168.8.101",
		setup: onRouter("ip route add unreachable 192.168.8.101"), args: probing, text: "look at the routes of 192.168.6.1",
	},
	{
		name: "the other end is down", check: "probe", status: "warning", saw: "answers neither pings nor protocol 4",
		setup: onRouter("ip route add blackhole 192.168.8.101"), args: probing, text: "traceroute 192.168.8.101",
	},
	{
		name: "packets go round", check: "probe", status: "failure", saw: "passed too many routers (ICMP 11/0)",
		setup: func(t *testing.T, s *site) {
			onRouter("ip route add 192.168.8.101 via 192.168.8.102")(t, s)
			s.does(t, s.ns02, "sysctl -qw net.ipv4.ip_forward=1; ip addr flush dev veth02; ip addr add 192.168.8.102/24 dev veth02; ip route add default via 192.168.8.1; "+
				"ip route add 192.168.8.101 via 192.168.8.1")
		},
		args: probing, text: "routes that go round",
	},
	{
		name: "this host's firewall keeps the probe", check: "probe", status: "failure", saw: "operation not permitted",
		also: []string{"filter-cost", "filter-output"},
		on01: `nft 'table ip f { chain o { type filter hook output priority 0; ip protocol 4 drop; }; }'`,
		args: probing, text: "filter-output",
	},
	{
		name: "the inner addresses do not fit", check: "probe", status: "warning", saw: "but 172.66.2.101 within the tunnel does not answer",
		setup: func(t *testing.T, s *site) {
			runs(t, s)
			s.does(t, s.ns02, "ip addr flush dev tun02; ip addr add 172.66.2.102 peer 172.66.1.101 dev tun02")
		},
		args: []string{"--probe", outer02}, text: "ip addr add 172.66.2.101 peer 172.66.1.101 dev NAME",
	},
	{
		name: "long packets vanish", check: "probe-mtu", status: "warning", saw: "packets of 1400 bytes arrive, and those of 1500 vanish",
		setup: func(t *testing.T, s *site) {
			runs(t, s)
			onRouter(`nft 'table ip f { chain f { type filter hook forward priority 0; ip length > 1405 drop; }; }'`)(t, s)
		},
		args: []string{"--probe", outer02}, cure: "ip link set tun01 mtu 1380", text: "let ICMP 3/4 pass",
	},
}

// probing are the options of a tunnel that does not run, whose other end is probed.
var probing = append([]string{"--probe", outer02}, wanted...)

// runs has the tunnel run at both ends, without the replies that would be missed.
func runs(t *testing.T, s *site) {
	t.Helper()
	s.start(t, s.ns01, s.ns02)
	s.does(t, s.ns01, "ping -q -c 1 172.66.2.101")
}

func on02(script string) func(*testing.T, *site) {
	return func(t *testing.T, s *site) { t.Helper(); s.does(t, s.ns02, script) }
}

func onRouter(script string) func(*testing.T, *site) {
	return func(t *testing.T, s *site) { t.Helper(); s.does(t, s.router, script) }
}

// secondWay joins ns01 and the router by another cable.
func (s *site) secondWay(t *testing.T) {
	t.Helper()
	lab := labtest.New(t)
	for _, err := range []error{
		lab.Veth(s.ns01, "veth11", s.router, "veth11_p"),
		s.ns01.AddAddr("veth11", "192.168.7.101/24"),
		s.router.AddAddr("veth11_p", "192.168.7.1/24"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// deniesTUN has the doctor run in a control group whose program for devices denies all, as that of a
// container does for those that it was not given.
func deniesTUN(t *testing.T, s *site) {
	t.Helper()
	dir := t.TempDir()
	s.hidesTUN(t, "mount -t cgroup2 none "+dir)
	seen := filepath.Join("/proc", s.mounts[len(s.mounts)-1], "root", dir)
	group := "doctor-test-" + strconv.Itoa(os.Getpid())
	if err := os.Mkdir(filepath.Join(seen, group), 0o755); err != nil {
		t.Skip("no control group can be made here: ", err)
	}
	t.Cleanup(func() { os.Remove(filepath.Join(seen, group)) })
	deny, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupDevice, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer deny.Close()
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: filepath.Join(seen, group), Attach: ebpf.AttachCGroupDevice, Program: deny})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { attached.Close() })
	s.prefix = []string{"sh", "-c", "echo 0 >" + dir + "/" + group + `/cgroup.procs; exec "$@"`, "sh"}
}

// copyForNobody has the program be one that another user may start, and that user start it.
func copyForNobody(t *testing.T, s *site) {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile(s.goipip)
	if err != nil {
		t.Fatal(err)
	}
	s.goipip = filepath.Join(dir, "goipip")
	for _, err := range []error{os.Chmod(dir, 0o755), os.WriteFile(s.goipip, binary, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.hidesTUN(t, "mount -t tmpfs none /dev/net; mknod -m 666 /dev/net/tun c 10 200")
	s.prefix = asNobody("")
}

// TestBrokenSetups has the doctor find what is wrong, and follows its advice.
func TestBrokenSetups(t *testing.T) {
	t.Parallel()
	for _, b := range setups {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			if b.setup != nil {
				b.setup(t, s)
			}
			if b.on01 != "" {
				s.does(t, s.ns01, b.on01)
			}
			args := b.args
			if args == nil {
				args = wanted
			}
			r := s.doctor(t, args...)
			got := r.of(b.check)
			if got.Status != b.status || !strings.Contains(got.Saw, b.saw) || !strings.Contains(got.Cure, b.text) || got.Why == "" {
				t.Errorf("%+v, want %s, seen %q, cure %q", got, b.status, b.saw, b.text)
			}
			also := slices.Sorted(slices.Values(append(b.also, b.check)))
			if got := r.wrong(); !slices.Equal(got, also) {
				t.Errorf("findings of %v, want %v", got, also)
			}
			cure := strings.ReplaceAll(b.cure, "PROGRAM", s.goipip)
			if commands := strings.Join(got.Commands, "\n"); commands != cure {
				t.Fatalf("the commands are\n%s\nwant\n%s", commands, cure)
			}
			if b.cure == "" {
				return
			}
			s.does(t, s.ns01, cure)
			labtest.WaitFor(t, "the cure to work", func() bool { return s.doctor(t, args...).of(b.check).Status == "ok" })
			for _, check := range b.cured {
				if f := s.doctor(t, args...).of(check); f.Status != "ok" {
					t.Errorf("after the cure: %+v", f)
				}
			}
		})
	}
}
