package netlab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"goipip/internal/netlab/labtest"
)

// goldenCases are command lines of ip, each case from no tunnels on. "L" is a complete pair of ends.
var goldenCases = [][]string{
	{"tunnel", "tunnel show", "t", "tunn show", "tunl show", "tun list", "tunnel lst", "tunnel ls", "tunnel l", "tunnel s", "tunnel sh"},
	{"tunnel help", "tunnel h", "tunnel frobnicate", "tunnel ad", "tunnel ''", "tunnel -s", "tunnel addd", "tunnel list x y"},
	{"tunnel add tun01 mode ipip L", "tunnel show", "tunnel show tun01", "tunnel show nosuch", "tunnel del tun01", "tunnel show", "tunnel del tun01"},
	{"tunnel add tun01 mode ip/ip L", "tunnel add tun01 mode ipip remote 198.51.100.9 local 192.0.2.1", "tunnel add tun02 mode ipip L", "tunnel add lo mode ipip L2", "tunnel show"},
	{"tunnel add mode ipip L", "tunnel add mode ipip L2", "tunnel show", "tunnel show ipip0", "tunnel show ipip7", "tunnel del ipip0", "tunnel add mode ipip L", "tunnel show"},
	{"tunnel add ipip5 L", "tunnel show ipip5", "tunnel change ipip5 ttl 7", "tunnel del ipip5"},
	{"tunnel add tun%d mode ipip L", "tunnel add tun%d mode ipip L2", "tunnel show", "tunnel del tun0", "tunnel add tun%d mode ipip L"},
	{"tunnel add tun01 L", "tunnel add tun01", "tunnel add", "tunnel add L", "tunnel change", "tunnel del", "tunnel change tun01 ttl 5", "tunnel change mode ipip L", "tunnel change tun01 mode ipip L"},
	{"tunnel add name tun01 mode ipip L", "tunnel add name tun02 name tun03 mode ipip L2", "tunnel add tun02 tun03 mode ipip L2", "tunnel add mode ipip L2 tun02", "tunnel add mode ipip L3 name tun03", "tunnel show name tun03"},
	{"tunnel add 'a b' mode ipip L", "tunnel add a/b mode ipip L", "tunnel add '' mode ipip L", "tunnel add abcdefghijklmnop mode ipip L", "tunnel add abcdefghijklmno mode ipip L", "tunnel add . mode ipip L2", "tunnel add .. mode ipip L2", "tunnel add a:b mode ipip L2", "tunnel add all mode ipip L2", "tunnel add default mode ipip L2", "tunnel show"},
	{"tunnel add x mode", "tunnel add x mode ipip remote", "tunnel add x mode ipip local", "tunnel add x mode ipip L ttl", "tunnel add x mode ipip L tos", "tunnel add x mode ipip L dev", "tunnel add x mode ipip L name", "tunnel add name"},
	{"tunnel add x mode frob L", "tunnel add x mode IPIP L", "tunnel add x mode ipip mode ipip L", "tunnel add x mode ipip remote 1.2.3 local 192.0.2.1", "tunnel show"},
	{"tunnel add x mode ipip L key 7", "tunnel add x mode ipip L ikey 1.2.3.4", "tunnel add x mode ipip L okey x", "tunnel add x mode ipip L key", "tunnel add x mode ipip L key 1.2.3.400", "tunnel add x mode ipip L key 4294967296", "tunnel show"},
	{"tunnel add x mode ipip L seq", "tunnel del x", "tunnel add x mode ipip L iseq oseq csum icsum ocsum", "tunnel show"},
	{"tunnel add x mode ipip local 192.0.2.1 remote 198.51.100.256", "tunnel add x mode ipip local 192.0.2.1 remote x", "tunnel add x mode ipip local 192.0.2.1 remote 1.2.3.4.5", "tunnel add x mode ipip local 192.0.2.1 remote ::1", "tunnel add x mode ipip local 192.0.2.1 remote ''", "tunnel add x mode ipip local 192.0.2.1 remote 10.", "tunnel add x mode ipip local -1 remote 1.2.3.4", "tunnel show"},
	{"tunnel add x mode ipip local 10.8 remote 0xc6.0x33.0144.7", "tunnel add y mode ipip local 010.1 remote 9", "tunnel show"},
	{"tunnel add x mode ipip local any remote 198.51.100.1", "tunnel add y mode ipip remote 198.51.100.2", "tunnel add z mode ipip local 0.0.0.0 remote 198.51.100.3", "tunnel add w mode ipip local default remote 198.51.100.4", "tunnel show", "tunnel show local any", "tunnel change x local 192.0.2.1", "tunnel change x local any", "tunnel show"},
	{"tunnel add x mode ipip L ttl 64", "tunnel show x", "tunnel change x ttl inherit", "tunnel show x", "tunnel change x ttl 0", "tunnel show x", "tunnel change x hoplimit 0x10", "tunnel change x hlim 010", "tunnel show x"},
	{"tunnel add x mode ipip L ttl 0", "tunnel add y mode ipip L2 ttl 256", "tunnel add y mode ipip L2 ttl -1", "tunnel add y mode ipip L2 ttl x", "tunnel add y mode ipip L2 ttl ''", "tunnel add y mode ipip L2 ttl 255", "tunnel add z mode ipip L3 ttl inherited", "tunnel show"},
	{"tunnel add x mode ipip L ttl 5 nopmtudisc", "tunnel add x mode ipip L nopmtudisc", "tunnel show", "tunnel change x ttl 5", "tunnel change x pmtudisc", "tunnel change x ttl 5", "tunnel change x nopmtudisc", "tunnel change x ttl 0 nopmtudisc", "tunnel show"},
	{"tunnel add x mode ipip L nopmtudisc pmtudisc", "tunnel add y mode ipip L2 pmtudisc nopmtudisc", "tunnel show"},
	{"tunnel add x mode ipip L dev lo", "tunnel add y mode ipip L2 dev nosuch", "tunnel add y mode ipip L2 dev d0", "tunnel show", "tunnel show dev d0", "tunnel show dev lo", "tunnel show dev d1", "tunnel show dev nosuch", "tunnel change x dev d1", "tunnel change x dev nosuch", "tunnel show"},
	{"tunnel add x mode ipip L tos inherit", "tunnel change x tos 0", "tunnel change x tos default", "tunnel change x tos inherit/EF", "tunnel show", "tunnel change x tos inherit/", "tunnel change x tos inherit/zz", "tunnel change x tos inheritff", "tunnel change x tos 10/20", "tunnel show", "-N tunnel show", "-j tunnel show", "tunnel change x dsfield 0x20", "tunnel change x d 28", "tunnel change x tclass CS7", "tunnel change x ds ff", "tunnel show"},
	{"tunnel add x mode ipip L tos 100", "tunnel add x mode ipip L tos x", "tunnel add x mode ipip L tos ''", "tunnel add x mode ipip L tos -1", "tunnel add x mode ipip L tos ef", "tunnel show", "tunnel del x", "tunnel add x mode ipip L tos EF", "tunnel show", "tunnel change x tos Ef"},
	{"tunnel add x mode ipip L", "tunnel add y mode ipip L2 ttl 9", "tunnel change x remote 198.51.100.9", "tunnel show", "tunnel change x remote 198.51.100.2", "tunnel show", "tunnel change y local 192.0.2.77", "tunnel change x remote 198.51.100.2", "tunnel show", "tunnel change nosuch ttl 5", "tunnel change lo ttl 5", "tunnel change d0 mode ipip"},
	{"tunnel add x mode ipip L ttl 9 tos 10", "tunnel change mode ipip L name x", "tunnel show", "tunnel change mode ipip L2 x", "tunnel change ttl 7 x", "tunnel show", "tunnel change name x ttl 8", "tunnel show", "tunnel chang x ttl 10", "tunnel c x ttl 11", "tunnel show"},
	{"tunnel add x mode ipip L", "tunnel add y mode ipip L2", "tunnel del mode ipip L2", "tunnel show", "tunnel del mode ipip L2", "tunnel del nosuch", "tunnel del lo", "tunnel del d0", "tunnel del mode ipip x", "tunnel show", "tunnel del x y", "tunnel del x ttl 300", "tunnel delete x"},
	{"tunnel add x mode ipip L", "tunnel show remote 198.51.100.1", "tunnel show remote 198.51.100.2", "tunnel show local 192.0.2.1", "tunnel show local 192.0.2.2", "tunnel show x remote 198.51.100.2", "tunnel show x local 192.0.2.1", "tunnel show mode ipip x", "tunnel show ttl 9", "tunnel show x key 7", "tunnel show mode ipip L"},
	{"tunnel add x mode ipip L ttl 64 tos AF11", "tunnel add y mode ipip L2 nopmtudisc dev lo tos inherit", "-s tunnel show", "-s tunnel show x", "-s -s tunnel show", "-o tunnel show", "-o -s tunnel show", "-d tunnel show", "-4 tunnel show", "-br tunnel show", "-d -s -o tunnel", "-s tunnel show ipip0", "-s tunnel show mode ipip x"},
	{"tunnel add x mode ipip L ttl 64 tos AF11", "tunnel add y mode ipip L2 nopmtudisc dev lo tos inherit", "-j tunnel show", "-j -p tunnel show", "-p -j tunnel show", "-p tunnel show", "-j -s tunnel show", "-j -p -s tunnel show", "-j tunnel show mode ipip x", "-j tunnel show nosuch", "-json -pretty tunnel", "--json tunnel show", "-j tunnel show x", "-j -N tunnel show"},
	{"-j tunnel show", "-j -p tunnel show", "-s tunnel show", "-statistics tunnel", "-stat tunnel", "-oneline tunnel", "-details tunnel", "-f inet tunnel show", "-family frob tunnel show", "-Numeric tunnel show", "-iec tunnel", "-h tunnel", "-t tunnel", "-ts tunnel"},
	{"tunnel add x mode ipip L", "-c tunnel show", "-color tunnel show", "-c=always tunnel show", "-c=auto tunnel show", "-c=never tunnel show", "-c -j tunnel show", "-c -s tunnel show x", "-c tunnel show mode ipip x"},
	{"link add x type ipip L", "tunnel show", "link add x type ipip L2", "link add y type ipip L", "link add name z type ipip L3", "link add dev w type ipip local 192.0.2.1 remote 198.51.100.4", "tunnel show", "link del x", "link delete y", "link del dev z type ipip"},
	{"link add x type ipip L mode ipip", "link add y type ipip L2 mode any", "link add z type ipip L3 mode ip4ip4", "tunnel show", "link add w type ipip L mode frob", "link add w type ipip mode", "tunnel change y ttl 5", "tunnel change y mode ipip ttl 5", "tunnel show"},
	{"link add type ipip L", "link add type ipip L2", "tunnel show", "link add x type ipip L3 ttl 64 tos EF dev lo", "tunnel show x", "link add y type ipip L ttl 5 nopmtudisc", "link add y type ipip L ttl 300", "link add y type ipip L tos zz", "link add y type ipip L tos inherit/EF", "link add y type ipip L dev nosuch", "link add y type ipip L frob", "link add y type ipip remote x", "link add y type ipip fwmark x", "link add y type ipip encap frob", "tunnel show"},
	{"link add x type ipip L fwmark 7", "link change x type ipip ttl 9", "tunnel show", "link change x type ipip ttl inherit tos inherit", "tunnel show", "link set x type ipip remote 198.51.100.9", "tunnel show", "link change nosuch type ipip ttl 5", "link set dev x type ipip local any", "link change x type ipip ttl 5 nopmtudisc", "link change x type ipip encap none", "link change x type ipip noencap nopmtudisc", "tunnel show"},
	{"link add x mtu 1400 type ipip L", "link add y mtu x type ipip L2", "link add z up type ipip L3", "link add w mtu 1000 mtu 1000 type ipip L2", "tunnel show"},
	{"link add a/b type ipip L", "link add x y type ipip L", "link add '' type ipip L", "link add abcdefghijklmnop type ipip L", "tunnel show"},
	{"tunnel del mode ipip", "tunnel show mode ipip remote 9", "tunnel add z mode ipip local 192.0.2.1"},
	{"tunnel add z mode ipip remote 224.0.0.1 local 192.0.2.1"}, {"tunnel add z mode gre L3"}, {"tunnel show mode sit"},
	{"tunnel add x mode ipip L", "tunnel add tun01 mode ipip L dev lo"},
	{"tunnel add x mode ipip remote 192.0.2.1 local 192.0.2.1", "tunnel add y mode ipip remote 127.0.0.1 local 192.0.2.1", "tunnel show"},
}

// goldenEnds replaces L, L2 and L3.
var goldenEnds = strings.NewReplacer(
	" L2", " local 192.0.2.1 remote 198.51.100.2", " L3", " local 192.0.2.1 remote 198.51.100.3", " L", " local 192.0.2.1 remote 198.51.100.1")

// goldenCombinations are tunnels with a third of all combinations of some options, among them each pair.
func goldenCombinations() (cases [][]string) {
	for i, local := range []string{"", "local any", "local 192.0.2.1"} {
		for k, ttl := range []string{"", "ttl 64", "ttl inherit"} {
			for l, tos := range []string{"", "tos 0x10", "tos inherit", "tos inherit/b8"} {
				if (i+k+l)%3 != 0 {
					continue
				}
				for _, pmtu := range []string{"", "nopmtudisc"} {
					options := strings.Join(strings.Fields(strings.Join([]string{local, tos, pmtu, ttl}, " ")), " ")
					cases = append(cases, []string{
						strings.TrimSpace("tunnel add x mode ipip remote 198.51.100.1 " + options),
						strings.TrimSpace("tunnel change x remote 198.51.100.2 " + options),
					})
				}
			}
		}
	}
	return cases
}

// goldenDifferences are command lines to which goipip answers otherwise than ip, and why.
var goldenDifferences = map[string]string{
	"tunnel del mode ipip":                                    "ip means the module's own device, tunl0, which is not to be deleted; goipip has none",
	"tunnel show mode ipip remote 9":                          "no such tunnel: ip shows tunl0",
	"tunnel add z mode ipip local 192.0.2.1":                  "a tunnel without a remote end",
	"tunnel add z mode ipip remote 224.0.0.1 local 192.0.2.1": "a multicast address as remote end",
	"tunnel add z mode gre L3":                                "another kind of tunnel",
	"tunnel show mode sit":                                    "another kind of tunnel",
	"tunnel add tun01 mode ipip L dev lo":                     "the same ends by another device: what the kernel sends to them belongs to both",
}

// goldenScript runs command lines and prints, for each, what it prints, its status, and after try the tunnels that result.
// What they all print to standard error comes last.
const goldenScript = `
look() {
	"$@" 2>>"$TMPDIR/err"
	echo "@ status $?"
	echo "@ end"
	echo "@ end" >>"$TMPDIR/err"
}
try() {
	"$@" 2>>"$TMPDIR/err"
	echo "@ status $?"
	$IP tunnel show
	[ "$link" ] && ip -o link show
	echo "@ end"
	echo "@ end" >>"$TMPDIR/err"
}
reset() { $IP tunnel show | while IFS=: read -r name rest; do [ "$name" = tunl0 ] || ip link delete "$name" || exit 1; done; }
: >"$TMPDIR/err"
`

// golden is a case as a shell script.
func golden(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		verb := "look"
		if goldenChanges.MatchString(line) {
			verb = "try"
		}
		link := ""
		if goldenLinks.MatchString(line) {
			link = "1"
		}
		fmt.Fprintf(&b, "link=%s; %s $IP %s\n", link, verb, goldenEnds.Replace(line))
	}
	b.WriteString("reset\n")
	return b.String()
}

// The links are as they were but after such lines.
var goldenLinks = regexp.MustCompile(`\b(add|dev|mtu|fwmark|remote)\b`)

var goldenChanges = regexp.MustCompile(`\b(a|add|c|chang|change|set|del|delete)\b`)

// TestO8_Golden types hundreds of command lines of ip tunnel and ip link into a Linux with the module, and into one with
// goipip. Output, errors, exit status and the tunnels that result must be the same, byte by byte.
func TestO8_Golden(t *testing.T) {
	t.Parallel()
	labtest.Long(t)
	labtest.Need(t, "root", "tun", "uml", "ip")
	guest, _ := newGuest(t, 0)
	if err := guest.LoadModules("ipip", "veth"); err != nil {
		t.Fatal(err)
	}
	host, err := labtest.New(t).Host("host")
	if err != nil {
		t.Fatal(err)
	}
	program := labtest.Build(t, "goipip/cmd/goipip") // without the race detector, which takes longer to start than to work
	const prepare = "ip link set lo up; ip link add d0 type veth peer name d1"
	runIn(t, guest, prepare)
	shell(t, host.Do, prepare)

	// Each batch is as much as a guest runs in a script's time.
	batches := slices.Collect(slices.Chunk(append(slices.Clone(goldenCases), goldenCombinations()...), 8))
	var scripts []string
	for _, cases := range batches {
		var b strings.Builder
		b.WriteString(goldenScript)
		for _, c := range cases {
			b.WriteString(golden(c))
		}
		b.WriteString("cat $TMPDIR/err")
		scripts = append(scripts, b.String())
	}
	answers := make(chan guestAnswer, len(scripts)) // so that it ends though nobody takes them
	go func() {                                     // beside goipip
		defer close(answers)
		for _, script := range scripts {
			out, err := guest.Run("TMPDIR=/run; export TMPDIR; IP=ip" + script)
			answers <- guestAnswer{out, err}
		}
	}()
	lines := 0
	for b, cases := range batches {
		got := goldenAnswers(t, shell(t, host.Do, "IP="+program+scripts[b]))
		answer := <-answers
		if answer.err != nil {
			t.Fatal(answer.err)
		}
		want := goldenAnswers(t, withoutFallback(answer.out))
		names := slices.Concat(cases...)
		if len(want) != len(names) || len(got) != len(names) {
			t.Fatalf("%d and %d answers to %d lines", len(want), len(got), len(names))
		}
		for i, line := range names {
			lines++
			_, differs := goldenDifferences[line]
			if differs && got[i] == want[i] {
				t.Errorf("goipip answers as ip to %s", line)
			} else if !differs && got[i] != want[i] {
				t.Errorf("ip %s:\n%s\ngoipip:\n%s", goldenEnds.Replace(line), want[i], got[i])
			}
		}
	}
	t.Logf("%d command lines", lines)
}

// guestAnswer is what a script printed in a guest.
type guestAnswer struct {
	out string
	err error
}

// The device tunl0, which the module makes and goipip does not, in lists as text and as JSON, with its counters.
var (
	fallbackText = regexp.MustCompile(`(?m)^(\x1b\[36m)?tunl0: .*\n((RX|TX|    ).*\n)*`)
	fallbackJSON = regexp.MustCompile(`\{\s*"ifname": ?"tunl0"[^}]*\}\n((RX|TX|    ).*\n)*,?`)
)

func withoutFallback(out string) string {
	out = fallbackJSON.ReplaceAllString(fallbackText.ReplaceAllString(out, ""), "")
	return strings.ReplaceAll(out, "[  ]", "[ ]")
}

// What a link is beside its tunnel: flags and MTU. The kernel's tunnel shows there whether its device is up (M-DOWN), which
// a TUN device cannot.
var (
	goldenLink  = regexp.MustCompile(`(?m)^\d+: ([^@:]+)[^<\n]*<([^>]*)> (mtu \d+) .*$`)
	otherDevice = regexp.MustCompile(`(?m)^(tunl0|lo|d0|d1|vec\d|eth\d|gre0|sit0|gretap0|erspan0) .*\n`)
)

func normalLinks(out string) string {
	out = goldenLink.ReplaceAllString(out, "$1 <$2> $3")
	return strings.ReplaceAll(otherDevice.ReplaceAllString(out, ""), ",M-DOWN", "")
}

// goldenAnswers splits what goldenScript prints into what it prints for each line, errors behind the rest.
func goldenAnswers(t *testing.T, out string) []string {
	t.Helper()
	parts := strings.Split(out, "@ end\n")
	if rest := parts[len(parts)-1]; rest != "" || len(parts)%2 == 0 {
		t.Fatalf("the script says %q", rest)
	}
	n := len(parts) / 2
	answers := make([]string, n)
	for i := range answers {
		answers[i] = normalLinks(parts[i]) + "@ errors\n" + parts[n+i]
	}
	return answers
}

// shell runs a script on a host.
func shell(t *testing.T, do func(func() error) error, script string) (out string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "script")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	err := do(func() error {
		cmd := exec.CommandContext(labtest.Context(t), "sh", path)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		text, err := cmd.CombinedOutput()
		out = string(text)
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}
