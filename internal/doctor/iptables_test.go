package doctor

import (
	"net/netip"
	"os/exec"
	"strings"
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

// Names that others have given must not become commands of whoever types what is advised.
func TestCommand(t *testing.T) {
	for _, words := range [][]string{
		{"ip", "link", "set", "tun01", "up"}, {"echo", "$(id)", "a;b", "it's", "", "`id`", "a b", "~", "*", "\\", "#x", "x=$PATH"},
	} {
		out, err := exec.Command("sh", "-c", `printf '%s\n' `+command(words...)).Output()
		if diff := cmp.Diff(strings.Join(words, "\n")+"\n", string(out)); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	if got := command("nft", "insert", "rule", "inet", "f", "in"); got != "nft insert rule inet f in" {
		t.Errorf("quoted without need: %s", got)
	}
}
