// Package docs_test runs the commands of these pages, and checks the configurations in them.
package docs_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// pages are those whose fenced blocks say by their first words what they are:
//
//	sh             commands, typed at Host-01 of README.md by root
//	sh host-02     the same at Host-02
//	toml FILE      a configuration, which comes into that file at Host-01
//	output         what the commands of the block before print
//	yaml           a file of another program, which another test checks
//	text, or none  such a file, a line of a log, or a sketch
//
// The hosts are new at each heading "##", and what stands above the first is done for each. A
// comment "with tun01" stands for the tunnel of README.md, between tun01 and tun02, and pings.
var pages = []string{"capture.md", "commands.md", "config.md", "metrics.md", "migrating.md", "names.md", "top.md"}

// tunnel is what "with tun01" stands for.
var tunnel = [2]string{
	"goipip tunnel add tun01 mode ipip remote 192.168.1.129 local 10.90.6.238\n" +
		"ip link set tun01 up\nip addr add 172.66.1.101 peer 172.66.2.101 dev tun01\nping -q -i 0.2 172.66.2.101 >/dev/null &\n",
	"goipip tunnel add tun02 mode ipip remote 10.90.6.238 local 192.168.1.129\n" +
		"ip link set tun02 up\nip addr add 172.66.2.101 peer 172.66.1.101 dev tun02\n",
}

func TestMain(m *testing.M) { labtest.Main(m) }

func TestPages(t *testing.T) {
	for _, page := range pages {
		t.Run(page, func(t *testing.T) {
			all := sections(t, page)
			for i, s := range all {
				if len(s.blocks) == 0 {
					continue
				}
				if i > 0 {
					s.blocks = slices.Concat(all[0].blocks, s.blocks)
				}
				t.Run(s.title, func(t *testing.T) {
					t.Parallel()
					s.run(t)
				})
			}
		})
	}
}

// section is what stands below a heading.
type section struct {
	title  string
	blocks []block
}

// block is a fenced block, or a comment.
type block struct {
	page  string
	line  int // of its first one in the page
	info  string
	lines []string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func sections(t *testing.T, page string) (all []section) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, section{title: "top"})
	var in *block
	for i, line := range strings.Split(string(text), "\n") {
		last := &all[len(all)-1]
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && in == nil:
			last.blocks = append(last.blocks, block{page: page, line: i + 2, info: info})
			in = &last.blocks[len(last.blocks)-1]
		case fence:
			in = nil
		case in != nil:
			in.lines = append(in.lines, line)
		case line == "<!-- with tun01 -->":
			last.blocks = append(last.blocks, block{page: page, line: i + 1, info: "tunnel"})
		case strings.HasPrefix(line, "## "):
			all = append(all, section{title: line[3:]})
		case strings.HasPrefix(line, "    "):
			t.Errorf("%s:%d: put ``` around commands and output, so that they are tested", page, i+1)
		}
	}
	return all
}

func (s section) run(t *testing.T) {
	labtest.Need(t, "root", "tun", "ip", "ping", "tcpdump", "unshare", "curl")
	host01, host02 := newHosts(t)
	var out string
	for _, b := range s.blocks {
		text := strings.Join(b.lines, "\n") + "\n"
		kind, file, _ := strings.Cut(b.info, " ")
		switch {
		case b.info == "sh":
			out = host01.types(t, b, text)
		case b.info == "sh host-02":
			out = host02.types(t, b, text)
		case b.info == "output":
			if out != text {
				t.Errorf("%v: the commands print\n%s", b, out)
			}
		case b.info == "tunnel":
			host02.types(t, b, tunnel[1])
			host01.types(t, b, tunnel[0])
		case kind == "toml" && file != "":
			host01.types(t, b, fmt.Sprintf("mkdir -p %s\ncat >%s <<'END'\n%sEND\ngoipip check --config %[2]s\n", filepath.Dir(file), file, text))
		case b.info == "text" || b.info == "" || b.info == "yaml":
		default:
			t.Errorf("%v: what is a block %q?", b, b.info)
		}
	}
}

// terminal is a shell at a host, with files of its own in /etc and /run. Everything ends with the test.
type terminal struct {
	in  io.Writer
	out *bufio.Reader
}

// newHosts makes Host-01 and Host-02 of README.md, and a router between them.
func newHosts(t *testing.T) (host01, host02 *terminal) {
	t.Helper()
	first, second, _, err := labtest.New(t).Lab1()
	if err != nil {
		t.Fatal(err)
	}
	return newTerminal(t, first), newTerminal(t, second)
}

// ownFiles gives a shell its own /etc and /run, and goipip as the package has it.
const ownFiles = `set -e
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/bin
cp "$0" /mnt/bin/goipip
mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc
mount -t tmpfs none /run
mkdir /run/files
cd /run/files
PATH=/mnt/bin:$PATH exec sh -e`

func newTerminal(t *testing.T, host *netlab.Host) *terminal {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", ownFiles, labtest.Build(t, "goipip/cmd/goipip"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	shell, err := host.Start(cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // the end of process 1 is that of all in its namespace
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := shell.Wait(ctx); err != nil && !t.Failed() {
			t.Error(err)
		}
		r.Close()
	})
	return &terminal{in, bufio.NewReader(r)}
}

// types has the shell run the lines of a block, each of which must succeed, and returns what they print.
func (h *terminal) types(t *testing.T, b block, script string) string {
	t.Helper()
	const end = "@ end\n"
	done := make(chan string, 1)
	go func() {
		var out strings.Builder
		for {
			line, err := h.out.ReadString('\n')
			if err != nil || line == end {
				done <- out.String() + line
				return
			}
			out.WriteString(line)
		}
	}()
	if _, err := io.WriteString(h.in, script+"\necho '"+strings.TrimSpace(end)+"'\n"); err != nil {
		t.Fatal(err)
	}
	out, ok := strings.CutSuffix(labtest.Within(t, b.String()+" to end", done), end)
	t.Logf("%v\n%s", b, out)
	if !ok {
		t.Fatalf("%v: a command failed", b)
	}
	return out
}
