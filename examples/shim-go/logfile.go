package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

const maxLog = 1 << 20 // bytes; what came before is kept once more, in a file of the same size

// logFile is what an instance prints. It is written by one and read by many; no line that it still holds is cut.
type logFile struct {
	path string
	mu   sync.Mutex
	file *os.File
	size int
	turn int // counts how often it began anew
}

func newLog(path string) *logFile { return &logFile{path: path} }

// begin starts the log of a new run.
func (l *logFile) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rotate()
}

func (l *logFile) rotate() {
	if l.file != nil {
		l.file.Close()
	}
	os.Rename(l.path, l.path+".1")
	l.file, _ = os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	l.size = 0
	l.turn++
}

// Write never fails: a full disk must not end who prints.
func (l *logFile) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+len(data) > maxLog {
		l.rotate()
	}
	if l.file != nil {
		count, _ := l.file.Write(data)
		l.size += count
	}
	return len(data), nil
}

func (l *logFile) read() (data []byte, turn int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	data, _ = os.ReadFile(l.path)
	return data, l.turn
}

func (l *logFile) lastLine() string {
	data, _ := l.read()
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	printable := strings.Map(func(letter rune) rune {
		if unicode.IsPrint(letter) {
			return letter
		}
		return -1
	}, lines[len(lines)-1])
	return fmt.Sprintf("%.300s", printable)
}

func (l *logFile) remove() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	os.Remove(l.path)
	os.Remove(l.path + ".1")
}

type logOptions struct {
	follow bool
	tail   int // lines; -1: all
}

// parseLogOptions refuses what this shim does not do, by name: an option that is ignored would be a wrong answer.
func parseLogOptions(given map[string]string) (logOptions, error) {
	options := logOptions{tail: -1}
	for name, value := range given {
		var err error
		switch {
		case value == "" || value == "false":
		case name == "follow":
			options.follow = true
		case name == "tailLines":
			if options.tail, err = strconv.Atoi(value); err != nil || options.tail < 0 {
				return options, fmt.Errorf("tailLines: %q is no number of lines", value)
			}
		default:
			return options, fmt.Errorf("%s: this shim offers tailLines and follow", name)
		}
	}
	return options, nil
}

// copy sends what is there, and goes on with what comes until the reader leaves if it follows.
func (l *logFile) copy(ctx context.Context, options logOptions, send func([]byte) error) error {
	data, turn := l.read()
	at := len(data)
	if options.tail >= 0 {
		lines := bytes.SplitAfter(data, []byte("\n"))
		if len(lines[len(lines)-1]) == 0 {
			lines = lines[:len(lines)-1]
		}
		data = bytes.Join(lines[max(len(lines)-options.tail, 0):], nil)
	}
	for {
		for len(data) > 0 {
			piece := data[:min(len(data), 64<<10)]
			if err := send(piece); err != nil {
				return err
			}
			data = data[len(piece):]
		}
		if !options.follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
		now, current := l.read()
		if current != turn {
			at, turn = 0, current
		}
		data, at = now[min(at, len(now)):], len(now)
	}
}
