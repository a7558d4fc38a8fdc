package doctor

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitWords(t *testing.T) {
	got := splitWords(`-A INPUT -m comment --comment "a \"b\"  -j DROP" -j ACCEPT`)
	if diff := cmp.Diff([]string{"-A", "INPUT", "-m", "comment", "--comment", `a "b"  -j DROP`, "-j", "ACCEPT"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzIPTables looks that no listing makes the evaluation fail or go on without end.
func FuzzIPTables(f *testing.F) {
	f.Add("-P INPUT DROP\n-N A\n-A A -p tcp -j A\n-A INPUT ! -s 10.0.0.0/8 -p ipip -j A\n-A A -m state --state NEW -g A\n-A A -i eth+ -m limit --limit 3/min -j REJECT --reject-with x")
	f.Fuzz(func(_ *testing.T, listing string) {
		s := parseIPTables("filter", listing)
		remote, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		s.blockers(outerFrom(remote, local, link{1, "eth0"}))
		s.blockers(outerTo(netip.Addr{}, local, link{}, 7))
		s.blockers(forwarded(link{1, "eth0"}, link{2, "tun0"}))
		s.wrong94()
	})
}
