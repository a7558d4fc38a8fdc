package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// guestScriptLimit is how long a script may run in a guest.
	guestScriptLimit = time.Minute
	// guestAnswerTimeout is how long a guest may take to boot, or to say how a script ended.
	guestAnswerTimeout = guestScriptLimit + 10*time.Second
	// guestOffTimeout is how long a guest may take to power off.
	guestOffTimeout = 10 * time.Second
	// guestConsoleTail is how much of a guest's console goes into an error, in bytes.
	guestConsoleTail = 4096
)

// GuestConfig says what a guest is made of.
type GuestConfig struct {
	// Cards names the TAP devices that the host gets, each joined to a network card of the guest: vec0, vec1 and so on.
	// Both ends are up and have no address. A TAP device is gone while the guest's end is down.
	Cards []string
}

// Guest is a User Mode Linux kernel, a process of its host. It has a network stack of its own, real modules such as
// ipip, one processor and 128 MiB of memory.
//
// Its programs and files are this machine's, read-only. Only /run is its own, and TMPDIR says so. What runs in it must do
// without AVX, see noAVX.
type Guest struct {
	host    *Host
	dir     string // shared with the guest, see guestInit
	process *Process
	closing sync.Once

	mu      sync.Mutex // held while a script runs
	scripts int
	serial  *os.File
	answers *bufio.Reader // of serial
}

// StartGuest boots a guest, in two seconds, and returns when it runs scripts and its cards are up. It belongs to the
// lab, which ends it in Close, and does not outlive this process. A guest that does not boot is an error with what its
// console says.
func (h *Host) StartGuest(cfg GuestConfig) (*Guest, error) {
	dir, err := os.MkdirTemp("", "goipip-guest-")
	if err != nil {
		return nil, fmt.Errorf("host %s: start guest: %w", h.Name, err)
	}
	g := &Guest{host: h, dir: dir}
	h.lab.onClose(g.Close)
	if err := g.boot(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: start guest: %w", h.Name, err), g.Close())
	}
	if err := g.setUpCards(cfg); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Run runs a shell script in the guest and returns what it wrote to standard output and standard error. A status other
// than 0 is an error, with that text in it. A script is ended after a minute, with status 124 as by timeout(1).
// Scripts run one at a time; what a script leaves in the background goes on.
func (g *Guest) Run(script string) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out, err := g.run(script)
	if err != nil {
		return out, fmt.Errorf("guest on host %s: run %q: %w", g.host.Name, script, err)
	}
	return out, nil
}

// Close powers the guest off and waits for its end. It is an error that it had to be killed. Further calls do nothing.
func (g *Guest) Close() error {
	var err error
	g.closing.Do(func() {
		if g.process != nil {
			err = g.powerOff()
		}
		err = errors.Join(err, os.RemoveAll(g.dir))
	})
	return err
}

// guestInit is the guest's process 1. A script is a file in the shared directory, whose name comes in on the serial
// line. What it writes goes to a file too, and what the kernel says goes to the console, so that neither can be taken for
// the answer: the script's name and status on the serial line. The end of that line is the end of the guest.
const guestInit = `#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir ` + guestShared + `
mount -t hostfs none ` + guestShared + ` -o "${0%/*}"
exec </dev/ttyS0 >/dev/ttyS0
stty raw -echo
echo ready
while read -r name; do
	timeout -k 1 "$script_limit" sh ` + guestShared + `/$name </dev/null >` + guestShared + `/$name.out 2>&1
	echo "$name $?"
done
echo o >/proc/sysrq-trigger
exec sleep 60
`

// guestShared is where the guest has its host's directory for it.
const guestShared = "/run/shared"

// noAVX keeps glibc's and Go's code from the AVX registers (glibc manual, "Hardware Capability Tunables"), which programs in
// a guest lose at each page fault, because of hidesXState.
//
// Without that, a processor with AMX makes linux.uml 6.1 panic at its first process. Its buffer for the registers that
// PTRACE_GETREGSET returns is too small there, and xstateregs_set refuses to restore less than all. Where
// PTRACE_GETREGSET fails it takes PTRACE_GETFPREGS, that is x87 and SSE. So all processors get the same.
var noAVX = []string{
	"GLIBC_TUNABLES=glibc.cpu.hwcaps=-XSAVE,-XSAVEC,-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load",
	"GODEBUG=cpu.all=off",
}

// guestProcess1 is a shell script, the first process in the guest's process namespace. Were it linux.uml, a panic would
// never end: the kernel ignores SIGABRT for the first process.
const guestProcess1 = `"$0" "$@"; exit`

// boot starts the guest and returns when it is ready for scripts.
func (g *Guest) boot(cfg GuestConfig) error {
	uml, err := exec.LookPath("linux.uml")
	if err != nil {
		return fmt.Errorf("%w: install Debian's user-mode-linux", err)
	}
	initPath := filepath.Join(g.dir, "init")
	if err := os.WriteFile(initPath, []byte(guestInit), 0o700); err != nil {
		return err
	}
	console, err := os.Create(g.consolePath())
	if err != nil {
		return err
	}
	defer console.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	g.serial = os.NewFile(uintptr(fds[0]), "serial line")
	g.answers = bufio.NewReader(g.serial)
	guestEnd := os.NewFile(uintptr(fds[1]), "guest's end of serial line")
	defer guestEnd.Close()

	cmd := exec.Command("sh", append([]string{"-c", guestProcess1, uml}, g.kernelArgs(cfg, initPath)...)...)
	cmd.Env = []string{} // TMPDIR would be where it keeps its memory, in place of /dev/shm.
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{guestEnd}
	// linux.uml has many processes, which a SIGKILL for the first would leave behind. They all end with their namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	if err := g.start(cmd); err != nil {
		return errors.Join(err, g.serial.Close())
	}
	if _, err := g.answer("ready"); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

func (g *Guest) kernelArgs(cfg GuestConfig, initPath string) []string {
	args := []string{
		"mem=128M", "root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro", "init=" + initPath, "quiet",
		"con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:3", "uml_dir=" + g.dir,
	}
	for i, tap := range cfg.Cards {
		args = append(args, fmt.Sprintf("vec%d:transport=tap,ifname=%s,depth=128,gro=1", i, tap))
	}
	// The kernel hands variables that it does not know to init.
	args = append(args, fmt.Sprintf("script_limit=%d", int(guestScriptLimit.Seconds())))
	return append(args, noAVX...)
}

// start starts the guest's process.
func (g *Guest) start(cmd *exec.Cmd) (err error) {
	g.process, err = g.host.startRefused(cmd, hidesXState)
	return err
}

func (g *Guest) setUpCards(cfg GuestConfig) error {
	script := "ip link set lo up"
	for i := range cfg.Cards {
		script += fmt.Sprintf(" && ip link set vec%d up", i)
	}
	if _, err := g.Run(script); err != nil {
		return err
	}
	for _, tap := range cfg.Cards {
		if err := g.host.SetUp(tap); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guest) run(script string) (string, error) {
	g.scripts++
	name := strconv.Itoa(g.scripts)
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(g.serial, name); err != nil {
		return "", err
	}
	status, err := g.answer(name + " ")
	if err != nil {
		return "", err
	}
	out, err := os.ReadFile(path + ".out")
	if err == nil && status != "0" {
		err = fmt.Errorf("status %s: %s", status, bytes.TrimSpace(out))
	}
	return string(out), err
}

// answer returns what follows prefix on the next line that begins with it. Other lines are answers that came too late.
func (g *Guest) answer(prefix string) (string, error) {
	if err := g.serial.SetReadDeadline(time.Now().Add(guestAnswerTimeout)); err != nil {
		return "", err
	}
	for {
		line, err := g.answers.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("no answer: %w; console: %s", err, g.console())
		}
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			return rest, nil
		}
	}
}

func (g *Guest) powerOff() error {
	if err := g.serial.Close(); err != nil {
		return err
	}
	select {
	case <-g.process.done():
		return nil
	case <-time.After(guestOffTimeout):
	}
	if err := g.process.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-g.process.done()
	return fmt.Errorf("guest on host %s: still there %v after power off, killed; console: %s",
		g.host.Name, guestOffTimeout, g.console())
}

func (g *Guest) consolePath() string { return filepath.Join(g.dir, "console") }

// console returns the end of the guest's console.
func (g *Guest) console() string {
	text, err := os.ReadFile(g.consolePath())
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-guestConsoleTail):])
}
