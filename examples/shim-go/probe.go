package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"time"

	"banyan.dev/examples/shim-go/shimv1"
)

// probe asks one question of an instance now and then. A nil probe is never due.
type probe struct {
	spec      *shimv1.Probe
	timer     *time.Timer
	good, bad int32 // in a row
	passed    bool
}

func newProbe(spec *shimv1.Probe) *probe {
	if spec == nil {
		return nil
	}
	return &probe{spec: spec, timer: time.NewTimer(seconds(spec.GetInitialDelaySeconds()))}
}

func seconds(value float64) time.Duration { return time.Duration(value * float64(time.Second)) }

func (p *probe) due() <-chan time.Time {
	if p == nil {
		return nil
	}
	return p.timer.C
}

// ask returns whether the instance passes, and why not once it has failed as often as it may.
func (p *probe) ask(i *instance) (passed bool, why string) {
	ctx, cancel := context.WithTimeout(context.Background(), seconds(p.spec.GetTimeoutSeconds()))
	defer cancel()
	problem := p.once(ctx, i)
	p.timer.Reset(max(seconds(p.spec.GetPeriodSeconds()), 100*time.Millisecond))
	if problem == nil {
		p.good, p.bad = p.good+1, 0
		p.passed = p.passed || p.good >= p.spec.GetSuccessThreshold()
		return p.passed, ""
	}
	p.good, p.bad = 0, p.bad+1
	if p.bad < p.spec.GetFailureThreshold() {
		return p.passed, ""
	}
	p.passed = false
	return false, problem.Error()
}

func (p *probe) once(ctx context.Context, i *instance) error {
	if words := p.spec.GetCommand(); len(words) > 0 {
		command := exec.CommandContext(ctx, words[0], words[1:]...)
		command.Dir, command.Env, command.WaitDelay = i.home, i.environment(), time.Second
		if err := command.Run(); err != nil {
			return fmt.Errorf("probe %q: %w", words[0], err)
		}
		return nil
	}
	address := i.address
	if port := p.spec.GetPort(); port != 0 {
		address = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	}
	if p.spec.GetTcp() {
		connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			connection.Close()
		}
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+p.spec.GetHttpPath(), nil)
	if err != nil {
		return err
	}
	request.Close = true
	answer, err := http.DefaultTransport.RoundTrip(request) // a redirect is an answer
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode >= 400 {
		return fmt.Errorf("%s answered %s", p.spec.GetHttpPath(), answer.Status)
	}
	return nil
}
