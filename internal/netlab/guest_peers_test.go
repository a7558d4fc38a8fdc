package netlab_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"goipip/internal/netlab/labtest"
)

// startTunnel starts goipip with an address, as a tunnel's end with options.
func (n guestNetns) startTunnel(t *testing.T, e end, options string) (log string) {
	t.Helper()
	log = n.background(t, fmt.Sprintf("%s -name %s -local %s -remote %s -address %s -peer %s %s",
		n.bin, e.dev, e.local, e.remote, e.inner, e.peer, options))
	labtest.WaitFor(t, e.dev+" to be up", func() bool {
		out, err := n.guest.Run("ip netns exec " + n.name + " ip -o addr show up dev " + e.dev)
		return err == nil && strings.Contains(out, e.inner)
	})
	return log
}

// sends transfers random bytes by TCP to an address of another namespace, and fails the test unless they arrive as they
// were sent.
func (n guestNetns) sends(t *testing.T, bytes int, to guestNetns, addr string) {
	t.Helper()
	const port = 7
	to.background(t, fmt.Sprintf("socat -u -T 20 TCP-LISTEN:%d,reuseaddr,bind=%s CREATE:/run/received", port, addr))
	listening := fmt.Sprintf("%s:%d", addr, port)
	labtest.WaitFor(t, "a listener", func() bool { return strings.Contains(to.run(t, "ss -Hltn"), listening) })
	runIn(t, n.guest, fmt.Sprintf("head -c %d /dev/urandom >/run/sent", bytes))
	n.run(t, fmt.Sprintf("socat -u -T 20 OPEN:/run/sent TCP:%s,connect-timeout=10", listening))
	labtest.WaitFor(t, "all bytes to arrive", func() bool {
		_, err := n.guest.Run("cmp /run/sent /run/received")
		return err == nil
	})
}

// carries looks at a tunnel from ns01 to ns02: pings of all lengths both ways, and TCP both ways.
func (n guestNetns) carries(t *testing.T, to guestNetns, e end) {
	t.Helper()
	for _, options := range []string{"", fmt.Sprintf("-M do -s %d", maxEcho), fmt.Sprintf("-s %d", fragmented)} {
		n.pings(t, options, e.peer)
		to.pings(t, options, e.inner)
	}
	n.sends(t, guestTransferLen, to, e.peer)
	to.sends(t, guestTransferLen, n, e.inner)
}

// guestTransferLen is in place of transferLen in a guest, some 2 s where the machine is slow.
const guestTransferLen = 1 << 20

// guestOptionSets are what matters of optionSets in a guest, which takes its time, and has one processor.
var guestOptionSets = []string{"", "--queues 2 --offload off"}

var (
	guestEnd01 = end{nil, "tun01", "192.168.6.101", "192.168.8.101", "172.56.1.101", "172.56.2.101"}
	guestEnd02 = end{nil, "tun02", "192.168.8.101", "192.168.6.101", "172.56.2.101", "172.56.1.101"}
)

// TestGuest_Goipip has goipip at both ends within another kernel, which cuts and merges superpackets of its own.
func TestGuest_Goipip(t *testing.T) {
	t.Parallel()
	ns01, ns02, _ := newGuestLab2(t)
	for _, options := range guestOptionSets {
		t.Run("options "+options, func(t *testing.T) {
			logs := []string{ns01.startTunnel(t, guestEnd01, options), ns02.startTunnel(t, guestEnd02, options)}
			ns01.carries(t, ns02, guestEnd01)
			for _, log := range logs {
				if out := runIn(t, ns01.guest, "cat "+log); strings.Contains(out, "level=WARN") || strings.Contains(out, "level=ERROR") {
					t.Errorf("goipip complains:\n%s", out)
				}
			}
			ns01.deletes(t, "tun01")
			ns02.deletes(t, "tun02")
		})
	}
}

// TestGuest_Socat has socat at the other end.
func TestGuest_Socat(t *testing.T) {
	t.Parallel()
	ns01, ns02, _ := newGuestLab2(t)
	ns02.background(t, "socat TUN:172.56.2.101/24,tun-type=tun,iff-no-pi,iff-up,tun-name=t0 IP4-SENDTO:192.168.6.101:4,bind=192.168.8.101")
	labtest.WaitFor(t, "socat's device", func() bool {
		out, err := ns02.guest.Run("ip netns exec ns02 ip -o link show up dev t0")
		return err == nil && out != ""
	})
	ns02.run(t, "ip link set t0 mtu 1480")
	ns02.run(t, "ip route add 172.56.1.101 dev t0")
	for _, options := range guestOptionSets {
		t.Run("options "+options, func(t *testing.T) {
			ns01.startTunnel(t, guestEnd01, options)
			ns01.carries(t, ns02, guestEnd01)
			ns01.deletes(t, "tun01")
		})
	}
}

// TestGuest_IPIPModule has the module ipip at the other end of goipip, in one kernel. Its tunnel4 answers to what goipip
// takes as well, so this is also the cure of that, in the words of tc(8): the answers stay where they are.
func TestGuest_IPIPModule(t *testing.T) {
	t.Parallel()
	ns01, ns02, router := newGuestLab2(t)
	if err := ns01.guest.LoadModules("ipip", "sch_ingress", "cls_u32", "act_gact"); err != nil {
		t.Fatal(err)
	}
	ns01.run(t, "tc qdisc add dev veth01 clsact")
	ns01.run(t, "tc filter add dev veth01 egress protocol ip u32 "+
		"match ip protocol 1 0xff match ip icmp_type 3 0xff match ip icmp_code 3 0xff action drop")
	ns02.run(t, "ip tunnel add tun02 mode ipip remote 192.168.6.101 local 192.168.8.101")
	ns02.run(t, "ip link set dev tun02 up")
	ns02.run(t, "ip addr add 172.56.2.101 peer 172.56.1.101 dev tun02")
	for _, options := range guestOptionSets {
		t.Run("options "+options, func(t *testing.T) {
			log := ns01.startTunnel(t, guestEnd01, options)
			ns01.prints(t, log, conflictWarning)
			// The module gives the cable superpackets, with checksums that are not finished.
			// In a slow guest they have two segments each.
			super := router.background(t, "tcpdump -c 1 -n -i veth02_p ip proto 4 and greater 1515")
			router.prints(t, super, "listening on")
			ns01.carries(t, ns02, guestEnd01)
			router.prints(t, super, "IP 192.168.8.101 > 192.168.6.101: IP 172.56.2.101")
			if out := ns02.run(t, "nstat -asz IcmpInDestUnreachs"); !slices.Contains(strings.Fields(out), "0") {
				t.Errorf("ns02 hears of tunnel4 in ns01:\n%s", out)
			}
			ns01.deletes(t, "tun01")
		})
	}
}
