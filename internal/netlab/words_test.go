package netlab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// words types `goipip tunnel WORDS` on the end's host, or goipip link WORDS, which must say nothing.
func (e end) words(t *testing.T, words string) {
	t.Helper()
	cmd := goipipCommand(t, strings.Fields(words)...)
	p := start(t, e.host, cmd)
	if err := p.Wait(labtest.Context(t)); err != nil || p.out.String() != "" {
		t.Fatalf("goipip %s: %v: %s", words, err, &p.out)
	}
}

// addUp makes the tunnel by words, sets it up and gives it its address.
func (e end) addUp(t *testing.T) {
	t.Helper()
	e.words(t, fmt.Sprintf("tunnel add %s mode ipip remote %s local %s", e.dev, e.remote, e.local))
	t.Cleanup(func() { e.host.DeleteLink(e.dev) })
	if err := e.host.SetUp(e.dev); err != nil {
		t.Fatal(err)
	}
	e.address(t)
}

// Each option of a tunnel is changed while a connection sends through it. Nothing is lost, and the link stays.
func TestWords_ChangeUnderLoad(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end01.addUp(t)
	l.end02.addUp(t)
	index := func() int {
		link, err := l.ns01.Netlink().LinkByName("tun01")
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().Index
	}
	before := index()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.transfer(t, transferLen)
	}()
	changes := []string{
		"tunnel change tun01 ttl 64", "tunnel change tun01 ttl 0", "tunnel change tun01 tos EF", "tunnel change tun01 tos inherit/0x10",
		"tunnel change tun01 tos 0", "tunnel change tun01 nopmtudisc", "tunnel change tun01 pmtudisc", "tunnel change tun01 dev veth01",
		"link change tun01 type ipip fwmark 7", "link change tun01 type ipip fwmark 0", "tunnel change tun01 local any", "tunnel change tun01 local 192.168.6.101",
	}
	n := 0
	for sending := true; sending || n < len(changes); n++ {
		l.end01.words(t, changes[n%len(changes)])
		select {
		case <-done:
			sending = false
		default:
		}
	}
	l.ping(t, netlab.PingOptions{})
	if after := index(); after != before {
		t.Errorf("the link has the index %d, and had %d", after, before)
	}
	t.Logf("%d changes", n)
}

// A tunnel loses nothing while another one of the same daemon comes, changes and goes.
func TestWords_NothingLostBeside(t *testing.T) {
	t.Parallel()
	l := newTunnelLab(t)
	l.end01.addUp(t)
	l.end02.addUp(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5 {
			l.end01.words(t, "tunnel add other mode ipip local 192.168.6.101 remote 192.168.8.250")
			for _, change := range []string{"ttl 64", "local any", "remote 192.168.8.251", "tos inherit", "local 192.168.6.101"} {
				l.end01.words(t, "tunnel change other "+change)
			}
			l.end01.words(t, "tunnel del other")
		}
	}()
	for sending := true; sending; {
		select {
		case <-done:
			sending = false
		default:
		}
		l.ping(t, netlab.PingOptions{Count: 100, Interval: time.Millisecond})
	}
}
