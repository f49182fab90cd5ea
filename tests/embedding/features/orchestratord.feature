Feature: An orchestrator that embeds the adapters
  Tasks go in over HTTP, their events come out as server-sent ones, and two real llama.cpp servers do
  the work behind a host in the orchestrator's own process.

  Background:
    Given an orchestrator over two replicas

  Scenario: A task is submitted and streamed
    When a client submits a task of 16 tokens
    Then it is accepted, under the client's correlation id
    And its stream is started, 16 tokens, then end
    And the engines are idle

  Scenario: A task is cancelled by the endpoint
    When a client submits a task of 8000 tokens
    And it reads 3 tokens
    And the client cancels the task
    Then its stream ends as cancelled
    And no token came after the cancel was answered
    And the engines are idle

  Scenario: A client hangs up
    When a client submits a task of 8000 tokens
    And it reads 3 tokens
    And the client hangs up
    Then the engines are idle

  Scenario: A replica is killed in mid-stream
    When a client submits a task of 8000 tokens
    And it reads 3 tokens
    And the replica that serves it is killed
    Then its stream ends with the error WORKER_RESET
    And 6 further tasks are all served by the other replica
    And the pool is healthy, with one replica that is not
    And a task comes back to the replica when it has been started again

  Scenario: A replica is drained and rebound
    When a client submits a task of 400 tokens
    And it reads 3 tokens
    And the replica that serves it is drained
    Then 4 further tasks are all served by the other replica
    And the first task ends by itself
    And the replica serves tasks again when it is rebound

  Scenario: A pool sheds load
    When the pool sheds load for 3 seconds
    Then a task is refused with 429 and ADMISSION_REJECT, to be tried again in 3 seconds
    And tasks are accepted when the pool admits them again

  Scenario: A request that is none
    Then a task without a prompt is refused with 400 and INVALID_PARAMS
    And a task for a pool that does not exist is refused with 400 and INVALID_PARAMS
    And the stream of a task that does not exist is refused with 404 and INVALID_PARAMS
    And cancelling a task that does not exist is no error

  Scenario: What is reported is true
    When a client submits a task of 8 tokens
    And it reads the stream to its end
    And a client submits a task of 8000 tokens
    And it reads 3 tokens
    And the client cancels the task
    Then its stream ends as cancelled
    And the metrics count what clients were given
    And the capabilities tell of both replicas
    And the metrics tell the slots of both engines
