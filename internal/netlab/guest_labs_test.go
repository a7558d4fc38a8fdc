package netlab_test

import (
	"fmt"
	"strings"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// guestNetns is a network namespace within a guest: a host whose kernel is another than this machine's.
type guestNetns struct {
	guest *netlab.Guest
	name  string
	bin   string // a goipip that runs there
}

// newGuestNetns boots a guest with namespaces of these names, between which there is nothing yet.
func newGuestNetns(t *testing.T, names ...string) []guestNetns {
	t.Helper()
	labtest.Need(t, "root", "uml", "ip", "ping", "tcpdump", "socat")
	bin := labtest.Build(t, "goipip/cmd/goipip")
	guest, _ := newGuest(t, 0)
	if err := guest.LoadModules("tun", "veth"); err != nil {
		t.Fatal(err)
	}
	runIn(t, guest, "mkdir -p /run/netns")
	var list []guestNetns
	for _, name := range names {
		n := guestNetns{guest, name, bin}
		runIn(t, guest, "ip netns add "+name)
		n.run(t, "ip link set lo up")
		list = append(list, n)
	}
	return list
}

// run runs a command as a person types it there, and returns what it printed.
func (n guestNetns) run(t *testing.T, line string) string {
	t.Helper()
	return runIn(t, n.guest, "ip netns exec "+n.name+" "+line)
}

// background runs a command in a shell's background, and returns the name of the file with what it prints.
func (n guestNetns) background(t *testing.T, line string) (output string) {
	t.Helper()
	output = strings.TrimSpace(runIn(t, n.guest, "mktemp"))
	runIn(t, n.guest, fmt.Sprintf("ip netns exec %s %s >%s 2>&1 &", n.name, line, output))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s# %s\n%s", n.name, line, runIn(t, n.guest, "tail -c 4096 "+output))
		}
	})
	return output
}

// prints waits until a command in the background has printed texts.
func (n guestNetns) prints(t *testing.T, output string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		labtest.WaitFor(t, "output "+text, func() bool { return strings.Contains(runIn(t, n.guest, "cat "+output), text) })
	}
}

// tcpdump types `tcpdump -n -i DEV`.
func (n guestNetns) tcpdump(t *testing.T, dev string) (output string) {
	t.Helper()
	output = n.background(t, "tcpdump -l -n -i "+dev)
	n.prints(t, output, "listening on "+dev)
	return output
}

// pings types `ping -c 3 ADDRESS` and looks at the output.
func (n guestNetns) pings(t *testing.T, options, to string) {
	t.Helper()
	pingsFrom(t, n.name, func(line string) string { return n.run(t, line) }, options, to)
}

// pingsFrom fails the test unless the first three pings are answered. By -w ping waits for that for ten seconds, and sends
// more meanwhile, because a guest may stand still for longer than it waits otherwise.
func pingsFrom(t *testing.T, where string, run func(line string) string, options, to string) {
	t.Helper()
	mentions(t, "ping in "+where, run("ping -c 3 -w 10 -i 0.2 "+options+" "+to),
		"icmp_seq=1 ", "icmp_seq=2 ", "icmp_seq=3 ", " 3 received", "ttl=64")
}

// veth joins two namespaces by a cable.
func (n guestNetns) veth(t *testing.T, dev, addr string, to guestNetns, toDev, toAddr string) {
	t.Helper()
	n.run(t, fmt.Sprintf("ip link add %s type veth peer name %s netns %s", dev, toDev, to.name))
	n.run(t, "ip addr add "+addr+" dev "+dev)
	n.run(t, "ip link set "+dev+" up")
	to.run(t, "ip addr add "+toAddr+" dev "+toDev)
	to.run(t, "ip link set "+toDev+" up")
}

// guestForms are the command lines of forms, within a guest.
var guestForms = map[string]func(t *testing.T, n guestNetns, e end){
	"flags": func(t *testing.T, n guestNetns, e end) {
		n.background(t, fmt.Sprintf("%s -name %s -local %s -remote %s", n.bin, e.dev, e.local, e.remote))
		labtest.WaitFor(t, e.dev+" to be up", func() bool {
			out, err := n.guest.Run("ip netns exec " + n.name + " ip -o link show up dev " + e.dev)
			return err == nil && out != ""
		})
	},
	"ip-tunnel words": func(t *testing.T, n guestNetns, e end) {
		n.run(t, fmt.Sprintf("%s tunnel add %s mode ipip remote %s local %s", n.bin, e.dev, e.remote, e.local))
	},
}

// deletes types `ip link delete DEV`, after which nothing of the tunnel is left.
func (n guestNetns) deletes(t *testing.T, dev string) {
	t.Helper()
	n.run(t, "ip link delete "+dev)
	labtest.WaitFor(t, "nothing to be left in "+n.name, func() bool {
		goipips := runIn(t, n.guest, "for pid in $(ip netns pids "+n.name+"); do readlink /proc/$pid/exe || true; done")
		return !strings.Contains(goipips, "goipip") && n.run(t, "tail -n +2 /proc/net/raw") == ""
	})
	if out := n.run(t, "ip -o link"); strings.Contains(out, dev) {
		t.Errorf("%s is still there: %s", dev, out)
	}
}

// TestLab1_InTheGuest is Lab 1 of LAB.md on another kernel, command for command.
func TestLab1_InTheGuest(t *testing.T) {
	t.Parallel()
	ns := newGuestNetns(t, "host-01", "host-02", "between")
	host01, host02, between := ns[0], ns[1], ns[2]
	host01.veth(t, "eth0", "10.90.6.238/24", between, "eth1", "10.90.6.1/24")
	host02.veth(t, "eth0", "192.168.1.129/24", between, "eth2", "192.168.1.1/24")
	host01.run(t, "ip route add default via 10.90.6.1")
	host02.run(t, "ip route add default via 192.168.1.1")
	between.run(t, "sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'")

	for name, add := range guestForms {
		t.Run(name, func(t *testing.T) {
			add(t, host01, end{dev: "tun01", remote: "192.168.1.129", local: "10.90.6.238"})
			host01.run(t, "ip link set tun01 up")
			host01.run(t, "ip addr add 172.66.1.101 peer 172.66.2.101 dev tun01")
			add(t, host02, end{dev: "tun02", remote: "10.90.6.238", local: "192.168.1.129"})
			host02.run(t, "ip link set tun02 up")
			host02.run(t, "ip addr add 172.66.2.101 peer 172.66.1.101 dev tun02")

			onTunnel, onUnderlay := host01.tcpdump(t, "tun01"), host01.tcpdump(t, "eth0")
			host01.pings(t, "", "172.66.2.101")
			host01.prints(t, onTunnel, "link-type RAW (Raw IP)",
				"IP 172.66.1.101 > 172.66.2.101: ICMP echo request",
				"IP 172.66.2.101 > 172.66.1.101: ICMP echo reply")
			host01.prints(t, onUnderlay,
				"IP 10.90.6.238 > 192.168.1.129: IP 172.66.1.101 > 172.66.2.101: ICMP echo request",
				"IP 192.168.1.129 > 10.90.6.238: IP 172.66.2.101 > 172.66.1.101: ICMP echo reply")

			host01.deletes(t, "tun01")
			host02.deletes(t, "tun02")
		})
	}
}

// newGuestLab2 is Lab 2 of LAB.md within a guest, without a tunnel yet.
func newGuestLab2(t *testing.T) (ns01, ns02, router guestNetns) {
	t.Helper()
	ns := newGuestNetns(t, "ns01", "ns02", "router")
	ns01, ns02, router = ns[0], ns[1], ns[2]
	ns01.veth(t, "veth01", "192.168.6.101/24", router, "veth01_p", "192.168.6.1/24")
	ns02.veth(t, "veth02", "192.168.8.101/24", router, "veth02_p", "192.168.8.1/24")
	ns01.run(t, "ip route add 192.168.8.0/24 via 192.168.6.1")
	ns02.run(t, "ip route add 192.168.6.0/24 via 192.168.8.1")
	router.run(t, "sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'")
	return ns01, ns02, router
}

var (
	lab2End01 = end{dev: "tun01", remote: "192.168.8.101", local: "192.168.6.101"}
	lab2End02 = end{dev: "tun02", remote: "192.168.6.101", local: "192.168.8.101"}
)

// TestLab2_InTheGuest is Lab 2 on another kernel, command for command, with the namespaces that it speaks of.
func TestLab2_InTheGuest(t *testing.T) {
	t.Parallel()
	ns01, ns02, router := newGuestLab2(t)
	for name, add := range guestForms {
		t.Run(name, func(t *testing.T) {
			add(t, ns01, lab2End01)
			ns01.run(t, "ip link set tun01 up")
			ns01.run(t, "ip addr add 172.56.1.101 peer 172.56.2.101 dev tun01")
			add(t, ns02, lab2End02)
			ns02.run(t, "ip link set dev tun02 up")
			ns02.run(t, "ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02")

			mentions(t, "ip addr", ns01.run(t, "ip addr"),
				"<POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1480",
				"link/ipip ",
				" peer 192.168.8.101",
				"inet 172.56.1.101 peer 172.56.2.101/32")

			onRouter := router.tcpdump(t, "veth01_p")
			ns01.pings(t, "", "172.56.2.101")
			ns02.pings(t, "", "172.56.1.101")
			router.prints(t, onRouter,
				"IP 192.168.6.101 > 192.168.8.101: IP 172.56.1.101 > 172.56.2.101: ICMP echo request",
				"IP 192.168.8.101 > 192.168.6.101: IP 172.56.2.101 > 172.56.1.101: ICMP echo reply",
				"IP 192.168.8.101 > 192.168.6.101: IP 172.56.2.101 > 172.56.1.101: ICMP echo request")

			ns01.deletes(t, "tun01")
			ns02.deletes(t, "tun02")
		})
	}
	for _, ns := range []guestNetns{ns01, ns02, router} {
		runIn(t, ns.guest, "for pid in $(ip netns pids "+ns.name+"); do kill $pid; done; ip netns delete "+ns.name)
	}
}
