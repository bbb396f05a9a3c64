package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"banyan.dev/examples/shim-go/shimv1"
)

const (
	settledAfter = time.Second // without a readiness probe, a command is ready once it has run for as long
	steadyAfter  = 10 * time.Second
	firstPause   = 500 * time.Millisecond
	longestPause = time.Minute
	drainTime    = time.Second // for connections that were sent to an instance just before it is to end
)

var count atomic.Int64 // orders instances

// instance is one process and all that come after it, until it is stopped. Its fields below mu's line belong to the cluster's lock.
type instance struct {
	cluster   *cluster
	id, uid   string
	number    int64
	version   int64
	component *shimv1.Component
	names     []string // BANYAN_…=…
	home      string
	log       *logFile
	stopAsked chan struct{}
	gone      chan struct{}
	serving   atomic.Int64 // connections that the site port has open to it

	// The cluster's lock:
	address         string // where it accepts connections; its own, so that one that is not ready gets none
	phase           string
	ready, stopping bool
	restarts        int32
	reason, message string
	pid             int
	started         time.Time
	ended           *shimv1.Ended
}

func newInstance(c *cluster, work *shimv1.Work, component *shimv1.Component) *instance {
	id := strings.ToLower(fmt.Sprintf("%.30s-%.20s-%.8s", work.GetName(), component.GetName(), rand.Text()))
	home := filepath.Join(c.folder, "instances", id)
	return &instance{
		cluster: c, id: id, uid: work.GetUid(), number: count.Add(1), component: component, home: home, phase: "Pending",
		log: newLog(home + ".log"), stopAsked: make(chan struct{}), gone: make(chan struct{}),
		names: []string{
			"BANYAN_APPLICATION=" + work.GetName(), "BANYAN_NAMESPACE=" + work.GetNamespace(), "BANYAN_INSTANCE=" + id,
			"BANYAN_COMPONENT=" + component.GetName(), "BANYAN_NODE=" + c.node, folderMark + c.folder,
		},
	}
}

// stop asks it to end; called under the lock, as often as one likes.
func (i *instance) stop() {
	if !i.stopping {
		i.stopping, i.ready, i.phase = true, false, "Stopping"
		close(i.stopAsked)
	}
}

// run is its life: start, wait, back off, start again, until it is asked to stop.
func (i *instance) run() {
	defer close(i.gone)
	socket, err := i.prepare()
	if err != nil {
		log.Printf("%s: %v", i.id, err)
	}
	for failures := 0; !i.asked(); {
		begun := time.Now()
		ended := &shimv1.Ended{Reason: "StartFailed", ExitCode: -1, StartedUnix: unix(begun)}
		if err != nil {
			ended.Message = err.Error()
		} else {
			i.runOnce(socket, ended)
		}
		if failures++; time.Since(begun) >= steadyAfter {
			failures = 1
		}
		ended.FinishedUnix, ended.LastLine = unix(time.Now()), i.log.lastLine()
		pause := min(firstPause<<min(failures-1, 10), longestPause)
		if !i.asked() {
			i.cluster.update(func() { i.fell(ended, failures, pause) })
		}
		select {
		case <-time.After(pause):
		case <-i.stopAsked:
		}
	}
	if socket != nil {
		socket.Close()
	}
	os.RemoveAll(i.home)
	i.log.remove()
	i.cluster.update(func() { delete(i.cluster.instances, i.id) })
}

func (i *instance) asked() bool {
	select {
	case <-i.stopAsked:
		return true
	default:
		return false
	}
}

// fell notes the end of a run; under the lock.
func (i *instance) fell(ended *shimv1.Ended, failures int, pause time.Duration) {
	i.ended, i.ready, i.pid, i.phase = ended, false, 0, "BackOff"
	i.restarts++
	i.reason, i.message = ended.Reason, ended.Message
	if failures > 2 {
		i.reason = "CrashLoopBackOff"
		i.message = fmt.Sprintf("%s; started again in %s; it said: %s", ended.Message, pause, ended.LastLine)
	}
}

// prepare lays out its working folder and opens the socket that it accepts on. The socket stays over its restarts: who connects
// meanwhile waits in the kernel's queue.
func (i *instance) prepare() (*os.File, error) {
	if err := os.MkdirAll(i.home, 0o700); err != nil {
		return nil, err
	}
	for _, volume := range i.component.GetVolumes() {
		kept := filepath.Join(i.cluster.folder, "volumes", i.uid, i.component.GetName(), volume.GetName())
		link, err := i.inside(volume.GetPath())
		if err == nil {
			err = errors.Join(os.MkdirAll(kept, 0o700), os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(kept, link))
		}
		if err != nil {
			return nil, err
		}
	}
	for _, file := range i.component.GetFiles() {
		path, err := i.inside(file.GetPath())
		if err != nil {
			return nil, err
		}
		mode := os.FileMode(file.GetMode())
		if file.GetSecret() {
			mode = 0o600
		}
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, file.GetContent(), 0o600), os.Chmod(path, mode))
		if err != nil {
			return nil, err
		}
	}
	if i.component.GetPort() == 0 {
		return nil, nil
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	i.cluster.update(func() { i.address = listener.Addr().String() })
	if !i.component.GetTakesSocket() { // it binds by itself: the port was only borrowed to find one that is free
		return nil, nil
	}
	return listener.File()
}

// inside keeps paths of a Desired below the working folder.
func (i *instance) inside(path string) (string, error) {
	if !filepath.IsLocal(path) || filepath.Clean(path) == "." {
		return "", fmt.Errorf("path %q does not lie inside the working folder; name a path below it", path)
	}
	return filepath.Join(i.home, path), nil
}

func (i *instance) environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + i.home, "LANG=C.UTF-8"}
	env = append(env, i.names...)
	if host, port, err := net.SplitHostPort(i.address); err == nil && !i.component.GetTakesSocket() {
		env = append(env, "HOST="+host, "PORT="+port)
	}
	for _, given := range []map[string]string{i.component.GetEnv(), i.component.GetSecretEnv()} {
		for name, value := range given {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// runOnce starts the process, follows it until it ends, and says how.
func (i *instance) runOnce(socket *os.File, ended *shimv1.Ended) {
	i.log.begin()
	command := exec.Command(i.component.GetCommand()[0], i.component.GetCommand()[1:]...)
	command.Dir, command.Env, command.Stdout, command.Stderr = i.home, i.environment(), i.log, i.log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	command.WaitDelay = 2 * time.Second // for output of what it leaves behind
	if socket != nil {
		// As systemd hands sockets over: descriptor 3. LISTEN_PID must name the process, which the shell becomes by exec.
		command.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, i.component.GetCommand()...)
		command.Path = "/bin/sh"
		command.Err = nil
		command.Env = append(command.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=site")
		command.ExtraFiles = []*os.File{socket}
	}
	if err := command.Start(); err != nil {
		ended.Message = err.Error()
		return
	}
	exited := make(chan error, 1)
	go func() { exited <- command.Wait() }()
	begun := time.Now()
	i.cluster.update(func() {
		i.pid, i.started = command.Process.Pid, begun
		if !i.stopping {
			i.phase, i.reason, i.message = "Running", "", ""
		}
	})
	unhealthy := i.follow(exited, command.Process.Pid)
	syscall.Kill(-command.Process.Pid, syscall.SIGKILL) // what it left behind in its session
	explain(command.ProcessState, ended)
	if unhealthy != "" {
		ended.Reason, ended.Message = "Unhealthy", unhealthy
	}
}

// follow asks its probes until it ends, and ends it when it is asked to or does not live. Returns why it was found not to.
func (i *instance) follow(exited chan error, pid int) (unhealthy string) {
	readiness, liveness := newProbe(i.component.GetReadiness()), newProbe(i.component.GetLiveness())
	settled := time.After(settledAfter)
	for {
		select {
		case <-exited:
			return unhealthy
		case <-i.stopAsked:
			i.terminate(exited, pid)
			return ""
		case <-settled:
			if readiness == nil {
				i.cluster.update(func() { i.ready = !i.stopping })
			}
		case <-readiness.due():
			good, why := readiness.ask(i)
			i.cluster.update(func() {
				i.ready = !i.stopping && good
				if i.reason, i.message = "", ""; why != "" {
					i.reason, i.message = "NotReady", why
				}
			})
		case <-liveness.due():
			if good, why := liveness.ask(i); !good && why != "" {
				unhealthy = why
				i.cluster.update(func() { i.ready = false })
				i.terminate(exited, pid)
				return unhealthy
			}
		}
	}
}

// terminate: first nobody new is sent to it and who was sent is served, then SIGTERM, and SIGKILL when its grace is over.
func (i *instance) terminate(exited chan error, pid int) {
	for latest := time.Now().Add(drainTime); i.serving.Load() > 0 && time.Now().Before(latest); {
		time.Sleep(10 * time.Millisecond)
	}
	syscall.Kill(pid, syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(time.Duration(i.component.GetGraceSeconds() * float64(time.Second))):
		syscall.Kill(-pid, syscall.SIGKILL)
		<-exited
	}
}

func explain(state *os.ProcessState, ended *shimv1.Ended) {
	ended.Reason = "Error"
	if state == nil {
		return
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		ended.ExitCode = int32(128 + int(status.Signal()))
		ended.Message = "it was ended by signal " + status.Signal().String()
		return
	}
	ended.ExitCode = int32(state.ExitCode())
	ended.Message = fmt.Sprintf("it exited with code %d", state.ExitCode())
	if state.ExitCode() == 0 {
		ended.Reason = "Completed"
	}
}

func (i *instance) observe() *shimv1.Instance {
	return &shimv1.Instance{
		Id: i.id, Component: i.component.GetName(), Revision: i.component.GetRevision(), Phase: i.phase, Ready: i.ready,
		Restarts: i.restarts, Reason: i.reason, Message: i.message, Node: i.cluster.node, Pid: int32(i.pid),
		StartedUnix: unix(i.started), CpuMillis: -1, MemoryBytes: -1, Ended: i.ended,
	}
}

func (i *instance) dial() (*net.TCPConn, error) {
	if i.address == "" {
		return nil, fmt.Errorf("component %s exposes no port", i.component.GetName())
	}
	connection, err := net.DialTimeout("tcp", i.address, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("instance %s cannot be reached: %w", i.id, err)
	}
	return connection.(*net.TCPConn), nil
}

func unix(moment time.Time) float64 {
	if moment.IsZero() {
		return 0
	}
	return float64(moment.UnixMilli()) / 1000
}

const folderMark = "BANYAN_SHIM_FOLDER="

// killLeftovers ends what a shim that was killed could not end, so that nothing runs twice. Each process names its folder.
func killLeftovers(folder string) {
	entries, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range entries {
		environment, _ := os.ReadFile(path)
		for _, word := range bytes.Split(environment, []byte{0}) {
			var pid int
			if string(word) == folderMark+folder {
				fmt.Sscanf(path, "/proc/%d/", &pid)
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}
