package netlab_test

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// orphanEnv makes the test binary the victim of TestKilled.
const orphanEnv = "NETLAB_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		if err := startOrphan(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {}
	}
	if os.Getenv(generatorEnv) != "" {
		generate()
		return
	}
	// Guests and hosts wait most of the time. -parallel says otherwise.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	labtest.Main(m)
}

// startOrphan starts a process in a host and prints its id.
func startOrphan() error {
	lab, err := netlab.New()
	if err != nil {
		return err
	}
	host, err := lab.Host("h")
	if err != nil {
		return err
	}
	p, err := host.Start(exec.Command("sleep", "1000"))
	if err != nil {
		return err
	}
	fmt.Println(p.Pid())
	return nil
}

// What a killed test leaves behind ends by itself.
func TestKilled(t *testing.T) {
	labtest.Need(t, "root")
	cmd := exec.CommandContext(labtest.Context(t), os.Args[0])
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	var pid int
	_, scanErr := fmt.Sscan(line, &pid)
	wasRunning := running(pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // It says that the process was killed.
	if readErr != nil || scanErr != nil || !wasRunning {
		t.Fatalf("no process was started: %q, %v, %v", line, readErr, scanErr)
	}
	labtest.WaitFor(t, "the end of the orphan", func() bool { return !running(pid) })
}
